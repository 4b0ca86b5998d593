# In the box: connections to 127.0.0.1:PORT <-> frames on stdin and stdout. It decides nothing; the host does.
# Arguments: RUN PORT MOST. Needs perl-base alone. gateway/frames.py has the frames.
use strict;
use warnings;
use Socket;
use Fcntl;
use Errno;

my ($OPEN, $DATA, $EOF, $RESET, $WINDOW, $CONNECT) = (1 .. 6);
my ($LONGEST, $CREDIT, $FULL, $HOSTS) = (32 * 1024, 256 * 1024, 512 * 1024, 1 << 31);
my ($run, $port, $most) = @ARGV;
my ($out, $in, $last, $accepted) = ("", "", 0, 0);
my (%by_number, %by_fd);
my ($reads, $writes) = ("", "");    # the descriptors that are waited for

$SIG{PIPE} = $SIG{INT} = 'IGNORE';
socket(my $listener, PF_INET, SOCK_STREAM, 0) or die "$!\n";
setsockopt($listener, SOL_SOCKET, SO_REUSEADDR, 1);
unless (bind($listener, pack_sockaddr_in($port, INADDR_LOOPBACK)) && listen($listener, 128)) {
    print STDERR "container-runner: no-port $run $!\n";
    exit 1;
}
nonblocking($_) for \*STDIN, \*STDOUT, $listener;

sub nonblocking { my $file = shift; fcntl($file, F_SETFL, fcntl($file, F_GETFL, 0) | O_NONBLOCK) }
sub later { $!{EAGAIN} || $!{EWOULDBLOCK} || $!{EINTR} }
sub frame { my ($kind, $number, $data) = (@_, ""); $out .= pack("CCnN", $kind, 0, length $data, $number) . $data }

sub watch {
    my $c = shift;
    vec($writes, $c->{fd}, 1) = length $c->{waiting} || $c->{connecting} ? 1 : 0;
    vec($reads, $c->{fd}, 1) = !$c->{read_all} && !$c->{connecting} && $c->{credit} > 0 ? 1 : 0;
}

sub drop {
    my ($c, $tell) = @_;
    delete $by_number{ $c->{number} } or return;
    delete $by_fd{ $c->{fd} };
    vec($reads, $c->{fd}, 1) = vec($writes, $c->{fd}, 1) = 0;
    frame($RESET, $c->{number}) if $tell;
    # Without a word of farewell, where one end was lost. Who was told all may still be reading it.
    setsockopt($c->{socket}, SOL_SOCKET, SO_LINGER, pack("ii", 1, 0)) if $tell || !$c->{said_all};
    close $c->{socket};
    return if $c->{number} >= $HOSTS;
    $accepted--;
    vec($reads, fileno $listener, 1) = 1;
}

sub settle {    # after what waits for the client has changed
    my $c = shift;
    if ($c->{last_word} && !length $c->{waiting} && !$c->{said_all} && !$c->{connecting}) {
        $c->{said_all} = 1;
        shutdown($c->{socket}, 1);
    }
    $c->{said_all} && $c->{read_all} ? drop($c, 0) : watch($c);
}

sub flush_to_client {
    my $c = shift;
    return drop($c, 1) if $c->{connecting} && unpack("i", getsockopt($c->{socket}, SOL_SOCKET, SO_ERROR));
    $c->{connecting} = 0;
    my $sent = syswrite($c->{socket}, $c->{waiting});
    return later() ? watch($c) : drop($c, 1) unless defined $sent;
    substr($c->{waiting}, 0, $sent) = "";
    $c->{taken} += $sent;
    if ($c->{taken} >= $CREDIT / 4) {
        frame($WINDOW, $c->{number}, pack("N", $c->{taken}));
        $c->{taken} = 0;
    }
    settle($c);
}

sub add_client {
    my ($socket, $number, $connecting) = @_;
    setsockopt($socket, Socket::IPPROTO_TCP(), Socket::TCP_NODELAY(), 1);
    my $c = {
        socket => $socket, fd => fileno $socket, number => $number, credit => $CREDIT, taken => 0, waiting => "",
        read_all => 0, last_word => 0, said_all => 0, connecting => $connecting,
    };
    $by_number{$number} = $by_fd{ $c->{fd} } = $c;
    watch($c);
}

sub take_client {
    accept(my $socket, $listener) or return;
    nonblocking($socket);
    frame($OPEN, ++$last);
    add_client($socket, $last, 0);
    vec($reads, fileno $listener, 1) = 0 if ++$accepted >= $most;
}

sub call_client {    # the host wants to speak to who listens in the box
    my ($number, $to) = @_;
    socket(my $socket, PF_INET, SOCK_STREAM, 0) or return frame($RESET, $number);
    nonblocking($socket);
    connect($socket, pack_sockaddr_in($to, INADDR_LOOPBACK)) || $!{EINPROGRESS} or return frame($RESET, $number);
    add_client($socket, $number, 1);
}

sub read_client {
    my $c = shift;
    my $size = sysread($c->{socket}, my $data, $LONGEST < $c->{credit} ? $LONGEST : $c->{credit});
    return later() ? 0 : drop($c, 1) unless defined $size;
    if ($size) {
        $c->{credit} -= $size;
        frame($DATA, $c->{number}, $data);
        watch($c);
    } else {
        $c->{read_all} = 1;
        frame($EOF, $c->{number});
        settle($c);
    }
}

sub read_host {
    my $size = sysread(STDIN, $in, $CREDIT, length $in);
    return if !defined $size && later();
    exit 0 unless $size;    # the host is gone
    my $at = 0;
    while (length($in) - $at >= 8) {
        my ($kind, undef, $length, $number) = unpack("CCnN", substr($in, $at, 8));
        last if length($in) - $at < 8 + $length;
        my $data = substr($in, $at + 8, $length);
        $at += 8 + $length;
        if ($kind == $CONNECT) { call_client($number, unpack("n", $data)); next }
        my $c = $by_number{$number} or next;
        if    ($kind == $DATA)   { $c->{waiting} .= $data; flush_to_client($c) unless vec($writes, $c->{fd}, 1) }
        elsif ($kind == $EOF)    { $c->{last_word} = 1; settle($c) }
        elsif ($kind == $RESET)  { drop($c, 0) }
        elsif ($kind == $WINDOW) { $c->{credit} += unpack("N", $data); watch($c) }
    }
    substr($in, 0, $at) = "";
}

sub write_host {
    my $size = syswrite(STDOUT, $out, $CREDIT);
    if (defined $size) { substr($out, 0, $size) = "" }
    elsif (!later()) { exit 0 }
}

vec($reads, 0, 1) = vec($reads, fileno $listener, 1) = 1;
syswrite(STDERR, "container-runner: forwarding $run\n");
while (1) {
    my ($r, $w) = ($reads, $writes);
    if (length $out > $FULL) { ($r, $w) = ("", ""); vec($r, 0, 1) = 1 }    # a slow host is waited for
    vec($w, 1, 1) = 1 if length $out;
    next if select($r, $w, undef, undef) < 0;
    read_host() if vec($r, 0, 1);
    write_host() if vec($w, 1, 1);
    take_client() if vec($r, fileno $listener, 1);
    for my $fd (keys %by_fd) {
        my $c = $by_fd{$fd} or next;
        flush_to_client($c) if vec($w, $fd, 1);
        read_client($c) if vec($r, $fd, 1) && $by_fd{$fd} && $by_fd{$fd} == $c && length $out <= $FULL;
    }
    write_host() if length $out;
}
