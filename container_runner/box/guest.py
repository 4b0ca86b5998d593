"""What runs inside the container beside the agent: two small POSIX shell scripts.

They ask for nothing but `sh` and the six programs in `TOOLS`, and were tried with dash, bash and busybox.
No script is built from data: everything that varies arrives as an argument.

Why there are any:

- Ending `docker exec` on the host leaves the agent at work, so the end has to come from inside.
- PID 1 has to reap orphans, to obey TERM at once, and to leave when nobody needs it any more; `sleep infinity`
  does none of this, and `--init` is not there on every podman.
- PID 1 has another uid than the agent, so the agent can neither signal it nor write to its output.

The host holds the exec's stdin open for as long as it wants the agent to live. That is the *lease*: whatever
happens to the host's side (cancelled, killed, the whole process tree at once), the kernel closes the pipe, the
watchdog in here sees the end, and stops the agent. In an ephemeral container the wrapper holds a FIFO open in
turn, and PID 1 leaves when that one closes, which removes the container.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import attrs

from container_runner.config.paths import MARK, RUN_DIR

TOOLS: Final = ("cat", "head", "mkfifo", "rm", "sleep", "wc")
"""The programs that the scripts use; the rest is built into every sh."""

CLAIM_SECONDS: Final = 4
"""How long a new ephemeral container waits for its first exec before it leaves."""

LEAVE_SECONDS: Final = 1
"""How long PID 1 stays when the lease has ended. podman's client finds no exit code in a container that is gone."""

PROMPT_LIMIT: Final = 48 * 1024 * 1024
"""The longest prompt in bytes: it is kept in RUN_DIR until the agent has opened it."""

EXIT_GONE: Final = 65
EXIT_MISSING_TOOL: Final = 69
EXIT_PROMPT_LOST: Final = 74

PID1: Final = f"""\
umask 0
trap 'exit 143' TERM INT HUP
for tool in {" ".join(TOOLS)}; do
  command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
done
if [ -n "$missing" ]; then
  printf '%s\\n' "$missing" >{RUN_DIR}/missing
  sleep {CLAIM_SECONDS}
  exit {EXIT_MISSING_TOOL}
fi
mkfifo {RUN_DIR}/lease
(
  [ "$1" = keep ] || {{ sleep {CLAIM_SECONDS}; [ -e {RUN_DIR}/claimed ] || kill -TERM 1; }}
  sleep "$2"
  kill -TERM 1
) >/dev/null 2>&1 &
if [ "$1" = keep ]; then
  wait "$!"
else
  cat <{RUN_DIR}/lease >/dev/null &
  wait "$!"
  sleep {LEAVE_SECONDS} &
  wait "$!"
fi
exit 0
"""
"""PID 1: `sh -c PID1 sh MODE LIMIT`.

MODE is "lease" (leave when the wrapper lets go of the FIFO, or when nobody came) or "keep" (persistent).
LIMIT is the container's time limit in seconds. `wait` is interrupted by TERM and reaps whatever is orphaned.
"""

_JUDGE: Final = f"""\
cr_kind() {{
  kind= parent= uid= group=
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in
      *{MARK}="$run"*) kind=ours ;;
      *{MARK}=*) kind=theirs ;;
    esac
  done </proc/"$1"/environ
  while read -r key value rest; do
    case $key in PPid:) parent=$value ;; Uid:) uid=$value ;; NSpgid:) group=$value; break ;; esac
  done </proc/"$1"/status
  [ -n "$kind" ] || [ "${{uid:-$mine}}" != "$mine" ] || kind=unclear
}}

cr_end() {{
  if [ "${{group:-0}}" -gt 1 ] && [ "$group" != "$$" ]; then kill -KILL -"$group"; fi
  kill -KILL "$1"
  again=yes
}}
"""
"""Judges a process, and ends one that carries the mark of `$run`, for EXEC and KILL.

One of our uid, `$mine`, without a mark may have been ending while we looked, and may have left a child that was not
there yet when we began, so it is a reason to look `again`, until it is met a second time. (PID 1's own children have
another uid.) What forks and ends all the time is met by ending its whole process group.
"""

EXEC: Final = f"""\
run=$1 mode=$2 size=$3 grace=$4
shift 4
cr_say() {{ word=$1; shift; printf 'container-runner: %s %s%s\\n' "$word" "$run" "${{*:+ $*}}" >&2; }}
cr_refuse() {{ code=$1; shift; cr_say "$@"; sleep 0.1 2>/dev/null || sleep 1; exit "$code"; }}

until [ -p {RUN_DIR}/lease ]; do
  [ ! -e {RUN_DIR}/missing ] || cr_refuse {EXIT_MISSING_TOOL} missing $(cat {RUN_DIR}/missing)
  sleep 0.05 2>/dev/null || sleep 1
done
: >{RUN_DIR}/claimed
if [ "$mode" = lease ]; then exec 4>{RUN_DIR}/lease; fi

program=$(command -v "$1") || cr_refuse 127 no-command
case $program in
  /*) if [ -d "$program" ] || [ ! -x "$program" ]; then cr_refuse 126 not-executable; fi ;;
esac

ulimit -c 0 2>/dev/null
exec 3<&0
prompt={RUN_DIR}/prompt-$run
(umask 077; head -c "$size" <&3 >"$prompt")
[ "$(wc -c <"$prompt")" -eq "$size" ] || {{ rm -f "$prompt"; cr_refuse {EXIT_PROMPT_LOST} prompt-lost; }}
exec 5<"$prompt"
rm -f "$prompt"

{_JUDGE}
cr_sweep() {{
  read -r me rest </proc/self/stat
  cr_kind "$$"
  mine=$uid known=" 1 $$ $me $watchdog " met=" " others=
  for pass in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    orphans= again=
    for process in /proc/[0-9]*; do
      process=${{process#/proc/}}
      case $known in *" $process "*) continue ;; esac
      cr_kind "$process"
      case $kind in
        ours) cr_end "$process" ;;
        theirs) others=yes ;;
        unclear)
          case $met in *" $process "*) ;; *) met="$met$process " again=yes ;; esac
          [ "$parent" != 1 ] || orphans="$orphans $process"
          continue
          ;;
      esac
      known="$known$process "
    done
    if [ -z "$others" ] && [ -n "$orphans" ]; then
      kill -KILL $orphans
      known="$known${{orphans# }} " again=yes
    fi
    [ -n "$again" ] || return 0
  done
  return 1
}}

cr_watchdog() {{
  trap '' TERM INT HUP
  trap 'kill -KILL -$$' EXIT
  exec >/dev/null 4>&- 5<&-
  until cat <&3 >/dev/null 2>&1; do :; done
  cr_say stop term
  kill -TERM -$$
  sleep "$grace"
  cr_say stop kill
  watchdog=
  cr_sweep 2>/dev/null
  sleep 1
}}

cr_oom() {{
  oom=0
  for file in /sys/fs/cgroup/memory.events /sys/fs/cgroup/memory/memory.oom_control; do
    [ -r "$file" ] || continue
    while read -r key value; do [ "$key" != oom_kill ] || oom=$value; done <"$file"
  done
}}

trap : TERM INT HUP
cr_oom
before=$oom
cr_say started "$$"
cr_watchdog 3<&3 &
watchdog=$!
({MARK}=$run; export {MARK}; exec "$@" <&5 3<&- 4>&- 5<&-)
code=$?
exec 5<&-
kill -KILL "$watchdog"
cr_sweep 2>/dev/null || cr_say left
cr_oom
[ "$oom" -le "$before" ] || cr_say oom "$((oom - before))"
cr_say ended "$code"
printf '\\ncontainer-runner: ended %s %s\\n' "$run" "$code"
while read -r line <&3; do :; done
exit "$code"
"""
"""The wrapper around every agent: `sh -c EXEC sh RUN MODE SIZE GRACE COMMAND...`.

RUN is the run's id, MODE as for PID 1, SIZE the prompt's length in bytes, GRACE the seconds between TERM and KILL.

Before the line "started" nothing of the agent has run, so a failure is the engine's or the image's; after it, the
exit code is the agent's own. A refusal stays for a moment, because podman's client loses what an exec that ends at
once has written. The prompt is read to its end first: an agent must not begin with half of it because the host died in
the middle. An exec'd process leads its own process group, so `-$$` is that group, and `kill -TERM -$$` is the one
spelling that every shell takes.

The last line goes to stdout, behind all that the agent said, and then the wrapper waits for the lease to end: docker
throws away what has not been fetched two seconds after an exec's end, so it must not end before the host has read all.

The sweep ends what carries our mark, and orphans that carry none as long as no other run is alive. What another exec
started has no parent in here and is nobody's orphan. The wrapper's own group can not be ended from inside, so if the
last pass still finds something, "left" asks for it to be done from outside. The sweep uses no program at all, because
there may be no process left to spawn one. The watchdog's EXIT trap ends the group also when the watchdog can not fork
its `sleep`.
"""

HOLD: Final = f"""\
until [ -p {RUN_DIR}/lease ]; do
  sleep 0.05 2>/dev/null || sleep 1
done
: >{RUN_DIR}/claimed
exec 4>{RUN_DIR}/lease
printf 'container-runner: started %s %s\\n' "$1" "$$" >&2
until cat >/dev/null 2>&1; do :; done
"""
"""Holds the lease of a container that waits for its run, as long as the host holds stdin: `sh -c HOLD sh RUN`."""

KILL: Final = f"""\
run=$1
{_JUDGE}
exec 2>/dev/null
kill -KILL -"$2"
cr_kind "$$"
mine=$uid known=" 1 $$ " pass=0
while [ "$pass" -lt 200 ]; do
  pass=$((pass + 1)) again=
  for process in /proc/[0-9]*; do
    process=${{process#/proc/}}
    case $known in *" $process "*) continue ;; esac
    cr_kind "$process"
    known="$known$process "
    case $kind in ours) cr_end "$process" ;; unclear) again=yes ;; esac
  done
  [ -n "$again" ] || break
done
exit 0
"""
"""Ends a run from outside, as the agent's user: `sh -c KILL sh RUN PGID`. It is the way out when the watchdog was
stopped or killed by the agent, and when the wrapper has said "left".

(uid 0 without CAP_KILL could not signal another user's process, and would not be told.)
"""


PROBE: Final = f"""\
kill -0 -"$1" 2>/dev/null || exit {EXIT_GONE}
"""
"""Whether a run's process group is still there: `sh -c PROBE sh PGID`. The engines fail with other codes."""

SWEEP: Final = """\
for pass in 1 2 3 4 5 6 7 8 9 10; do
  left=
  for process in /proc/[0-9]*; do
    process=${process#/proc/}
    [ "$process" != 1 ] || continue
    above=$process
    while [ "$above" -gt 1 ]; do
      parent=
      while read -r key value rest; do
        [ "$key" != PPid: ] || parent=$value
      done <"/proc/$above/status"
      [ -n "$parent" ] || left=yes
      above=${parent:-0}
    done
    [ "$above" = 1 ] || continue
    if kill -KILL "$process" || [ ! -e "/proc/$process" ]; then left=yes; fi
  done 2>/dev/null
  [ -n "$left" ] || exit 0
  sleep 0.05 2>/dev/null || sleep 1
done
exit 1
"""
"""Ends what runs have left in a container that no run uses any more: `sh -c SWEEP`, as the agent's user.

An agent can carry another run's mark, or none, and it can end our wrapper; but a process whose parents lead to PID 1
belongs to nobody who is still here. What a person has started with an exec of their own leads to that exec, which has
no parent in the container. PID 1's own children have another uid. One that ends before it is judged may have left
another behind, so it is a reason to look again: what forks and ends all the time is never caught, and never called
gone. Exit code 1: there was still something in the last pass.
"""


@attrs.frozen(kw_only=True)
class Report:
    """What the wrapper said on stderr, in lines with the run's id. An agent that wants to can say the same, so this
    tells what happened and permits nothing."""

    refusal: str | None = None
    """Why the agent was not started: "missing", "no-command", "not-executable", "prompt-lost", or None."""

    missing: tuple[str, ...] = ()
    """The tools that the image lacks."""

    stop: str | None = None
    """The last rung that the watchdog took: "term", "kill", or None."""

    oom_kills: int = 0
    """How many processes the kernel killed for their memory during the run."""

    left: bool = False
    """Whether the wrapper could not end all that the agent had left."""

    ended: int | None = None
    """The agent's exit code, if the wrapper lived to see it."""

    @classmethod
    def parse(cls, stderr: bytes, run: str) -> tuple[Report, bytes]:
        """Split *stderr* into the report on a *run* and what the agent wrote."""
        said: dict[str, list[str]] = {}
        line = re.compile(rb"container-runner: ([a-z-]+) %s([^\n]*)\n?" % re.escape(run.encode()))
        for word, rest in line.findall(stderr):
            said[word.decode()] = rest.decode("utf-8", "replace").split()
        report = cls(
            refusal=next((word for word in _REFUSALS if word in said), None),
            missing=tuple(said.get("missing", ())),
            stop="".join(said.get("stop", ())) or None,
            left="left" in said,
            oom_kills=_number(said.get("oom", ())) or 0,
            ended=_number(said.get("ended", ())),
        )
        return report, line.sub(b"", stderr)


_REFUSALS = ("missing", "no-command", "not-executable", "prompt-lost")


def _number(words: Sequence[str]) -> int | None:
    return int(words[0]) if len(words) == 1 and re.fullmatch("[0-9]{1,9}", words[0]) else None


def ended_line(run: str) -> bytes:
    """How the last line of stdout begins. What comes before it is all that the agent said."""
    return f"container-runner: ended {run} ".encode()


def started_line(run: str) -> bytes:
    """How the line begins that divides the engine's failures from the agent's."""
    return f"container-runner: started {run} ".encode()
