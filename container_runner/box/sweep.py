"""How what a run has left in a kept container is ended: the part of the script that does it."""

from __future__ import annotations

from typing import Final

from container_runner.config.paths import MARK

SWEEP: Final = f"""\
look() {{
  state= parent= uid=
  while read -r key value rest; do
    case $key in State:) state=$value ;; PPid:) parent=$value ;; Uid:) uid=$value; break ;; esac
  done <"/proc/$1/status"
}}
others() {{
  set +f
  look "$$"
  mine=$uid
  for process in /proc/[0-9]*; do
    look "${{process#/proc/}}"
    case $uid:$parent:$process in "$mine":0:*/"$$") ;; "$mine":0:*) return 0 ;; esac
  done
  return 1
}}
marked() {{
  set +f
  found=
  for process in /proc/[0-9]*; do
    text=
    while IFS= read -r line || [ -n "$line" ]; do
      text=yes
      case $line in *{MARK}="$run"*) kill "$1" "${{process#/proc/}}" && found=yes ;; esac
    done <"$process/environ"
    if [ "$1" != -KILL ]; then
      now && [ "$clock" -lt "$end" ] || return 0
    elif [ -z "$text" ]; then
      look "${{process#/proc/}}"
      case $uid:$state:$process in *:[TtZX]:* | *:"/proc/$$") ;; "$mine":*) found=yes ;; esac
    fi
  done
}}
sweep() {{
  turn=0
  ! others || turn=$(($$ % 97 * 16))
  while [ "$turn" -gt 0 ] && now; do turn=$((turn - 1)); done
  kill -STOP -1
  others || {{ kill -KILL -1; return 0; }}
  now
  clean=0 end=$((clock + 4))
  while [ "$clean" -lt 2 ] && now && [ "$clock" -lt "$end" ]; do
    kill -STOP -1
    marked -KILL
    clean=$((clean + 1))
    [ -z "$found" ] || clean=0
  done
  kill -CONT -1
  [ "$clean" -eq 2 ]
}}
"""
"""Ends what a run has left in a kept container. All of the agent's uid is stopped meanwhile, so that nothing forks.

Where somebody else of that uid has come in by an exec (a process without a parent: another run, a shell of yours), what
carries the run's mark is signalled, and the rest goes on; else all of it is.

Two sweeps that begin in the same instant would stop each other, and nobody would be left to let them go on. So where
there is somebody else, each first waits for some milliseconds, which its pid decides.

A process that was in the middle of a fork when it was stopped still brings out a child, maybe when we have looked
already, and one in the middle of an exec has no environment yet. So we look until twice in a row nothing that is marked
was there, nor anything whose mark can not be read because it runs on: what dies between the two looks has had its child
before the second. If that does not come in four seconds KEEPER is not told that we are gone, and ends the container.
"""
