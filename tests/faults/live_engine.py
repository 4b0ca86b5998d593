"""An engine with a live agent, for being cancelled: a script that keeps a container as a file."""

READ_HEADER = """\
read -r lines || exit 70
header=
while [ "$lines" -gt 0 ]; do
  IFS= read -r line || exit 70
  header="$header$line
" lines=$((lines - 1))
done
eval "$header"
"""
"""How each engine that is a script takes what stands in front of the prompt."""

SCRIPT = r"""#!/bin/sh
# What the agent is told comes by a FIFO beside FOLDER. What is written before it has opened that, it would never read.
cd FOLDER || exit
talk() {
  : >"../$name.open"
  while IFS= read -r line; do
    case $line in
      *initialize*) echo '{"type":"control_response","response":{"subtype":"success","request_id":"ours-1"}}' ;;
      *'"user"'*) echo '{"type":"result","subtype":"success","is_error":false,"result":"ok","session_id":"s"}' ;;
    esac
  done
  echo "container-runner: ended $token 0" >&2
  printf '\ncontainer-runner: ended %s 0\n' "$token"
}
case $1 in
  --version) echo 'Docker version 28.0.0, build fake' ;;
  run)
    for word; do case $word in --name=*) name=${word#--name=} ;; esac; done
    : >"$name"
    trap 'rm -f "$name" "../$name" "../$name.open"' EXIT  # --rm
    READ_HEADER
    mkfifo "../$name"
    talk <"../$name" &
    agent=$!
    echo "container-runner: started $token" >&2
    cat >/dev/null
    kill "$agent" 2>/dev/null
    wait
    ;;
  exec)
    while [ "$1" != -- ]; do shift; done
    for run; do :; done
    name=$2
    exec 1<>"../$name" || exit 69
    while [ -e "$name" ] && [ ! -e "../$name.open" ]; do sleep 0.01; done
    echo "container-runner: feeding $run" >&2
    exec cat
    ;;
  rm)
    for word; do :; done
    rm -f "$word"
    ;;
  ps) ;;
  inspect) echo '[]' ;;
esac
""".replace("READ_HEADER", READ_HEADER)
