r"""What runs inside the container beside the agent: small POSIX shell scripts.

They ask for nothing but `sh` and the programs in `TOOLS`, and were tried with dash, bash and busybox.
No script is built from data: what varies arrives as an argument, or in the header on stdin.

The host holds our stdin open for as long as it wants the agent to live. That is the *lease*: whatever happens to the
host's side (cancelled, killed, the whole process tree at once), the kernel closes the pipe, and the script ends the
agent. It reads the lease under the agent's own uid, so four things keep the agent from holding it open:

- The script runs in a copy of its shell that nobody may read. The kernel then lets no process of its uid trace it,
  read its memory, or open its pipes by /proc (`would_dump` in fs/exec.c).
- In an ephemeral container it is PID 1, which nobody inside can stop or kill. In a kept one it is an exec, which can
  be stopped; there PID 1, of another uid, ends the container when the script falls silent.
- Its end forks nothing, waits for nobody and opens nothing but files of /proc. When PID 1 goes, the kernel ends all.
- No trap for CHLD: dash and ash leave `read` for it, so that an orphan's end would look like the lease's.
"""

from __future__ import annotations

from typing import Final

from container_runner.box.sweep import SWEEP
from container_runner.config.paths import MARK, RUN_DIR

TOOLS: Final = ("chmod", "cp", "head", "mkdir", "mkfifo", "rm", "sleep", "wc")
"""The programs that the scripts use; the rest is built into every sh."""

_KINDS = ("http", "https", "ftp", "all", "no")
PROXIES: Final = (*(f"{kind}_proxy" for kind in _KINDS), *(f"{kind.upper()}_PROXY" for kind in _KINDS))
"""The variables of proxies. The agent gets none that is empty: some programs prefer it to the other spelling."""

LEASE: Final = f"{RUN_DIR}/keeper/lease"
INPUT: Final = f"{RUN_DIR}/input-"
"""How the folder with the FIFO of a live agent's stdin is called, with the run's id behind it.

Each FIFO that another uid opens lies in a folder that has no sticky bit: most Linux systems (fs.protected_fifos) let
nobody open somebody else's FIFO in one that has it, as a shell opens.
"""

PROMPT_LIMIT: Final = 48 * 1024 * 1024
"""The longest prompt in bytes: it is kept in RUN_DIR until the agent has opened it."""

EXIT_LOST: Final = 3
"""The agent's own parent in here was killed, so that nobody could say how the agent ended."""

EXIT_REFUSED: Final = 69
EXIT_NO_HEADER: Final = 70
EXIT_NO_COMMAND: Final = 71
EXIT_NOT_EXECUTABLE: Final = 72
REFUSED: Final = (EXIT_REFUSED, EXIT_NO_COMMAND, EXIT_NOT_EXECUTABLE)
"""The codes with which no agent was started, and nothing else is wrong. podman's client may lose all that an exec which
ends at once has written, but not its code."""

_SEAL: Final = f"""\
refusal=
for tool in {" ".join(TOOLS)}; do
  command -v "$tool" >/dev/null 2>&1 || refusal="${{refusal:-missing}} $tool"
done
[ -z "${{KSH_VERSION-}}${{ZSH_VERSION-}}" ] || refusal=other-sh
[ -n "$refusal" ] || {{ cp "/proc/$$/exe" {RUN_DIR}/sh && chmod 111 {RUN_DIR}/sh; }} || refusal=unsealed
"""

SEAL: Final = f"""\
[ "$#" -gt 2 ] || printf 'container-runner: up %s\\n' "$0" >&2
{_SEAL}
[ -n "$refusal" ] || {{ script=$1; shift; exec {RUN_DIR}/sh -c "$script" "$0" "$@"; }}
printf 'container-runner: %s\\n' "${{refusal%% *}} $0 ${{refusal#* }}" >&2
exit {EXIT_REFUSED}
"""
"""Becomes GUEST as PID 1, in an unreadable copy of its shell: `sh -c SEAL RUN GUEST LIMIT [COMMAND...]`.

Without a COMMAND it says "up" before: nothing of the agent is there, and programs of ours may start, under another uid.

(ksh starts no process for a subshell, on which `launch` depends, and zsh has traps of its own.)
"""

_TICKER: Final = """\
ticker='trap "exec sh -c \\"\\$0\\" \\"\\$0\\" $1" EXIT; trap "trap - EXIT; exit" TERM
while sleep 2; do kill -USR1 "$1" || { trap - EXIT; exit; }; done'
"""
"""Sends USR1 to a process every two seconds. Where it can not fork its `sleep`, dash ends it, and it begins again."""

KEEPER: Final = f"""\
umask 0
set -f
trap 'exit 143' TERM INT HUP
{_SEAL}
[ -z "$refusal" ] || {{ printf '%s\\n' "$refusal" >{RUN_DIR}/refusal; sleep 4; exit {EXIT_REFUSED}; }}
runs=
drop() {{
  rest=
  for held in $runs; do [ "${{held%:*}}" = "$run" ] || rest="$rest $held"; done
  runs=$rest
}}
tick() {{
  rest=
  for held in $runs; do
    [ "${{held#*:}}" -lt 4 ] || exit 0
    rest="$rest ${{held%:*}}:$((${{held#*:}} + 1))"
  done
  runs=$rest
}}
trap tick USR1
mkdir -m 711 {RUN_DIR}/keeper && mkfifo -m 622 {LEASE} && exec 3<>{LEASE}
{_TICKER}
(sleep "$1"; kill -TERM 1) </dev/null >/dev/null 2>&1 3>&- &
sh -c "$ticker" "$ticker" 1 </dev/null >/dev/null 2>&1 3>&- &
while :; do
  read -r word run <&3 || word=
  jobs >/dev/null
  case $word in
    here) drop; runs="$runs $run:0" ;;
    gone) drop ;;
  esac
done
"""
"""PID 1 of a kept container, under another uid than the agent's: `sh -c KEEPER sh LIMIT`, the time limit in seconds.

Each run's script says "here" with its secret token every two seconds, and at its end "gone". One that falls silent for
four of our own ticks was stopped or killed: its lease may have ended unseen, so the container ends. What an agent
writes into the FIFO knows no token. (Ticks, and not a clock: a machine that slept has not missed any.)
"""

JOIN: Final = f"""\
until [ -p {LEASE} ]; do
  if [ -e {RUN_DIR}/refusal ]; then
    read -r word rest <{RUN_DIR}/refusal
    printf 'container-runner: %s\\n' "$word $0 $rest" >&2
    sleep 0.1 2>/dev/null || sleep 1
    exit {EXIT_REFUSED}
  fi
  sleep 0.05 2>/dev/null || sleep 1
done
script=$1
shift
exec {RUN_DIR}/sh -c "$script" "$0" "$@"
"""
"""Becomes GUEST as an exec in a kept container, in KEEPER's copy of the shell: `sh -c JOIN RUN GUEST LIMIT COMMAND...`.

podman's client loses what an exec that ends at once has written, so a refusal stays for a moment.
"""

FEED: Final = f"""\
command -v cat >/dev/null 2>&1 || exit {EXIT_NO_COMMAND}
[ -p {INPUT}"$0/fifo" ] && exec >{INPUT}"$0/fifo" || exit {EXIT_REFUSED}
echo
printf 'container-runner: feeding %s\\n' "$0" >&2
exec cat
"""
"""Carries its stdin to a live agent, as an exec beside the one that holds the lease: `sh -c FEED RUN`.

It has another uid than the agent, which can neither stop it nor count on it as somebody who uses the container. The
agent's own shell holds the FIFO open until the agent has ended, so that nothing here waits for an agent that is gone.
The agent waits for our first line, so that it does not take an input that is not there yet for its end. (To wait until
somebody opens the FIFO would be for ever where we had come and gone before, as during a long setup.)
"""

EXIT_NAMELESS: Final = 73
"""NAMED's answer for a user without a name."""

_NAMED: Final = """\
named() {
  [ ! -h /etc ] && [ ! -h /etc/passwd ] || return 0
  if [ ! -f /etc/passwd ]; then [ -e /etc/passwd ]; return; fi
  while IFS=: read -r name mark number rest || [ -n "$name" ]; do
    [ "$number" != "$1" ] || case $name in '' | [#+-]*) ;; *) return 0 ;; esac
  done </etc/passwd
  return 1
} 2>/dev/null
"""
"""Whether a uid has a line in /etc/passwd, or something else stands there, that a file is not mounted over."""

NAMED: Final = f'{_NAMED}named "$1" || exit {EXIT_NAMELESS}'
"""Asks that for itself: `sh -c NAMED sh UID`."""

_MOUNTS: Final = """\
check_mounts() {
  here= made=
  IFS= read -r here </proc/sys/kernel/random/boot_id
  seen=$nl
  while read -r id parent device root target options rest; do
    IFS=$nl ours=
    for top in $tops; do case $target in "$top" | "$top"/*) ours=yes ;; esac; done
    unset IFS
    [ -n "$ours" ] || continue
    access=${options%%,*}
    case $mounts in
      *"$nl$target $access $device $root$nl"*) ;;
      *"$nl$target $access tmpfs /$nl"*)
        case $here$rest in "$kernel"*'- tmpfs '*) ;; "$kernel"*) refuse mounts "$target" ;; esac
        ;;
      *"$nl$target $access overlay "*)
        made=${mounts#*"$nl$target $access overlay "} made=${made%%"$nl"*}
        case $here,$rest, in "$kernel,"*'- overlay '*",$made,"*) ;; *) refuse mounts "$target" ;; esac
        ;;
      *"$nl$target $access volume "*)
        made=${mounts#*"$nl$target $access volume "} made=${made%%"$nl"*}
        case $root in */"$made"/_data) ;; *) refuse mounts "$target" ;; esac
        ;;
      *"$nl$target * $device $root$nl"*) continue ;;
      *"$nl$target $access "*) [ "$here" != "$kernel" ] || refuse mounts "$target" ;;
      *"$nl$target * "*) [ "$here" != "$kernel" ] || refuse mounts "$target"; continue ;;
      *) [ -n "$others" ] || refuse mounts "$target"; continue ;;
    esac
    case $seen in *"$nl$target$nl"*) ;; *) seen=$seen$target$nl number=$((number - 1)) ;; esac
  done </proc/self/mountinfo
  [ "$number" -eq 0 ] || refuse mounts
}
"""

GUEST: Final = f"""\
run=$0 limit=${{1%:*}} patience=${{1#*:}}
shift
tmp={RUN_DIR} token=$run live= gated= nl='
'
gap=$nl
set -f
say() {{ word=$1; shift; printf 'container-runner: %s %s%s\\n' "$word" "$token" "${{*:+ $*}}" >&2; }}
refuse() {{
  say "$@"
  [ "$kept" = no ] || sleep 0.1 2>/dev/null || sleep 1
  [ "$1" != no-command ] || exit {EXIT_NO_COMMAND}
  [ "$1" != not-executable ] || exit {EXIT_NOT_EXECUTABLE}
  exit {EXIT_REFUSED}
}}
now() {{
  for try in 1 2 3; do read -r clock rest </proc/uptime && clock=${{clock%.*}} && [ -n "$clock" ] && return 0; done
  return 1
}}
{_MOUNTS}
{_NAMED}
hidden() {{
  case $1 in */*) places=${{1%/*}} ;; *) places=$PATH ;; esac
  IFS=:
  for found in $places; do
    unset IFS
    [ ! -h "$found/${{1##*/}}" ] || {{ found=$found/${{1##*/}}; return 0; }}
    while [ -n "$found" ] && [ ! -d "$found" ]; do found=${{found%/*}}; done
    [ -z "$found" ] || [ -x "$found" ] || return 0
  done
  return 1
}}
oom() {{
  killed=0
  for file in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
    [ -r "$file" ] || continue
    while read -r key value; do [ "$key" != oom_kill ] || killed=$value; done <"$file"
  done
}}

trap 'exit 143' TERM
trap '' INT HUP
[ "$#" -gt 0 ] || say ready
if [ "$$" = 1 ]; then
  kept=no
  rm -f "$tmp/sh"
  exec 4>/dev/null
else
  kept=yes
  exec 4>{LEASE}
fi
IFS= read -r lines || exit {EXIT_NO_HEADER}
header=
while [ "$lines" -gt 0 ]; do
  IFS= read -r line || exit {EXIT_NO_HEADER}
  header=$header$line$nl lines=$((lines - 1))
done
eval "$header"
header= line=
[ -z "$proof" ] || [ -e "$proof" ] || refuse elsewhere
check_mounts
[ -z "$uid" ] || named "$uid" || refuse nameless
program=$(command -v "$1") || {{ hidden "$1" && refuse not-executable "$found"; refuse no-command; }}
case $program in
  /*) if [ -d "$program" ] || [ ! -x "$program" ]; then refuse not-executable; fi ;;
esac
[ -z "$gated" ] || IFS= read -r line || exit {EXIT_NO_HEADER}
ulimit -c 0 2>/dev/null
(umask 077; head -c "$size" >"$tmp/prompt-$run")
[ "$(wc -c <"$tmp/prompt-$run")" -eq "$size" ] || {{ rm -f "$tmp/prompt-$run"; refuse prompt-lost; }}
[ -z "$live" ] || {{ mkdir -m 711 {INPUT}"$run" && mkfifo -m 622 {INPUT}"$run/fifo"; }} || refuse prompt-lost
exec 5<"$tmp/prompt-$run" 6>&1 7>&2 2>/dev/null
rm -f "$tmp/prompt-$run"
[ -z "$live" ] || exec 5<>{INPUT}"$run/fifo" 8<{INPUT}"$run/fifo" 5<&8 8<&-

path_of() {{
  IFS=:
  for folder in $PATH; do
    [ ! -f "$folder/$1" ] || [ ! -x "$folder/$1" ] || {{ printf '%s\n' "$folder/$1"; return 0; }}
  done
  printf '%s\n' "$1"
}}
within() {{
  case $1 in */*) ;; *) found=$(path_of "$1"); shift; set -- "$found" "$@" ;; esac
  [ ! -d "$place" ] || cd "$place" || exit 126
  [ "$kept" = no ] || {{ {MARK}=$run; export {MARK}; }}
  eval "$files$nl$variables" 2>/dev/null
  {"; ".join(f'[ -n "${name}" ] || unset {name}' for name in PROXIES)}
  exec "$@"
}}
agent() {{
  exec >&6 2>&7 6>&- 7>&-
  until [ -e "$tmp/go-$run" ]; do :; done
  trap : INT HUP
  asked= step=
  trap asked=yes TERM
  oom
  before=$killed
  say started
  if [ -n "$setup" ]; then
    say setup
    (exec </dev/null >&2 4>&- 5<&-; within sh -c "$setup")
    code=$?
    [ "$code" -eq 0 ] || step=setup
  fi
  [ -n "$step$asked" ] || {{
    ([ -z "$live" ] || {{ read -r line <&5; }} 8<>{INPUT}"$run/fifo"; exec <&5 4>&- 5<&-; within "$@")
    code=$?
  }}
  if [ -n "$check" ] && [ "$step$asked$code" = 0 ]; then
    say check
    printf '%scontainer-runner: check %s\\n' "$gap" "$token"
    (exec </dev/null >&2 4>&- 5<&-; within sh -c "$check")
    code=$? step=check
  fi
  oom
  [ "$killed" -le "$before" ] || say oom "$((killed - before))"
  : >"$tmp/ended-$run"
  say ended "$code" $step
  printf '%scontainer-runner: ended %s %s\\n' "$gap" "$token" "$code${{step:+ $step}}"
}}
launch() {{
  {{ read -r me rest </proc/self/stat; echo "$me"; agent "$@"; }} </dev/null | {{
    read -r child
    echo "$child" >"$tmp/child-$run"
    read -r me name state parent rest </proc/self/stat
    if [ "$parent" = "$$" ]; then kill -KILL "$me"; else kill -KILL "$parent"; fi
  }}
}}
(launch "$@"; :)
read -r child <"$tmp/child-$run"
rm -f "$tmp/child-$run"
exec >/dev/null 5<&- 6>&- 7>&-

{SWEEP}
leave() {{
  [ "$kept" = no ] || {{
    sweep && printf 'gone %s\\n' "$token" >&4
    rm -rf "$tmp/go-$run" "$tmp/ended-$run" {INPUT}"$run"
  }}
  exit "${{1:-0}}"
}}
ask() {{
  shared=
  [ "$kept" = no ] || ! others || {{ shared=yes; kill -TERM -$$; marked -TERM; return 0; }}
  kill -TERM -1
}}
interrupt() {{
  end=$((clock + 1))
  if [ "$kept" = yes ] && others; then marked -INT; else kill -INT -1; fi
}}
any() {{
  [ "$kept" = yes ] || {{ kill -0 -1; return; }}
  [ -z "$shared" ] || {{ marked -0; [ -n "$found" ]; return; }}
  for process in /proc/[0-9]*; do
    look "${{process#/proc/}}"
    case $uid:$state:$process in "$mine":[ZX]:* | *:"/proc/$$") ;; "$mine":*) return 0 ;; esac
  done
  return 1
}}
stop() {{
  trap '' TERM USR1
  printf 'reap\\n' >&4
  jobs
  kill -0 "$child" && now || leave
  end=$((clock + grace + (grace > 0)))
  ask
  while jobs; kill -0 "$child" && now && [ "$clock" -lt "$end" ]; do
    [ "$clock" = "$at" ] || {{ at=$clock; printf 'reap\\n' >&4; }}
  done
  [ "$end" -le "$((clock + 2))" ] || end=$((clock + 2))
  printf 'reap\\n' >&4
  while jobs; any && now && [ "$clock" -lt "$end" ]; do
    [ "$clock" = "$at" ] || {{ at=$clock; printf 'reap\\n' >&4; }}
  done
  leave
}}
tick() {{
  jobs
  now || stop
  printf 'here %s\\n' "$token" >&4
  kill -0 "$child" || [ -e "$tmp/ended-$run" ] || leave {EXIT_LOST}
  [ "$clock" -lt "$limit" ] && [ "$clock" -lt "$((heard + patience))" ] || stop
}}
now || leave
limit=$((clock + limit)) at=$clock heard=$clock misses=0
trap stop TERM
trap tick USR1
printf 'here %s\\n' "$token" >&4
{_TICKER}
sh -c "$ticker" "$ticker" "$$" </dev/null >/dev/null 2>&1 4>&- &
: >"$tmp/go-$run"
while :; do
  IFS= read -r line && {{ [ "$line" != int ] || interrupt; now && heard=$clock; tick; continue; }}
  now || stop
  [ "$clock" = "$at" ] || at=$clock misses=0
  misses=$((misses + 1))
  [ "$misses" -lt 20 ] || stop
done
"""
"""Holds the lease and runs the agent: `sh -c GUEST RUN LIMIT [COMMAND...]`, by SEAL or JOIN.

RUN is the run's id and LIMIT the seconds after which it ends; with ":SECONDS" behind it, it also ends when the host has
said nothing for so long, for a line that is cut ends no lease. stdin is the header (see `header`), the prompt, and then
the lease. Where a gateway is started meanwhile, an empty line and the prompt come when it is there: behind the prompt
nothing may come before it was read, for a busybox's `head` reads ahead.
Without a COMMAND it says "ready" first, and takes the command from the header.

The agent is started by its path: a busybox that has programs built in would run them as our copy of it, which nobody
can read, so that the sweep could not tell whose they are. Its files and variables are made where it is started: a
variable may be called as one of ours is, or as one that a shell keeps for itself, such as bash's UID, which `export`
alone would end it for.

A line "int" on the lease interrupts the agent and its tools, as Ctrl-C at a terminal would.

The header comes with a secret token, which is in every line that we say from then on, so that an agent can not say
them in our name. A file that was just made on this machine must be there, or the engine's folders are not ours. The
mounts are held against what was planned: whatever a path meant when the engine followed it, the kernel tells what it
became. The prompt is read to its end before the agent starts: an agent must not begin with half of it because the host
died in the middle. Before "started" nothing of the agent has run, so a failure is the engine's or the image's; after
it, the exit code on "ended" is the agent's own.

What comes before and after the agent is run in the same way, without a prompt, and what it says goes to stderr. The
check is announced on stdout too: behind that the agent has nothing more to say, and needs no time to leave.

`launch` starts the agent from a pipeline and not with `&`, which would have it ignore INT and QUIT for ever; the
pipeline's other half ends the subshell that would wait for it. The agent waits for `go`, so that it can not stop a
process that we still wait for. From then on nothing is written but to KEEPER, and nothing is opened but files of /proc.

A live agent's stdin is a FIFO, see FEED.

`stop` asks all that the agent has started, wherever it hides, and when the agent has ended gives the rest up to two
seconds more: a git that is killed leaves its lock. In a kept container `kill -0 -1` would always find somebody: to the
kernel it succeeds where there are but processes of others, such as KEEPER's.

The host sends an empty line when the agent was silent, so that we look whether it is there: what kills all that it
may also kills the ticker. A `read` that fails has met the lease's end, or a signal: dash and ash do not tell which.
The end fails again and again, more often in a second than the ticker ever signals; an agent that sends so many ends
its own run.
"""
