#!/bin/sh
# ranks.sh serve MODEL [FLAGS...]: one of the hosts that share a model, as leaderworkerset.yaml starts it on each. The first starts
# $SLOTS ranks on every host, by mpirun over ssh, and is the server; the others wait to be asked. SIGTERM drains the server: it goes
# to the first rank, as mpirun would leave it a second.
set -u
: "${SLOTS:=1}" "${LWS_GROUP_SIZE:=1}" "${LWS_WORKER_INDEX:=0}" "${LWS_LEADER_ADDRESS:=localhost}"
run=$(mktemp -d)
trap 'rm -r "$run"' EXIT
if [ "$LWS_WORKER_INDEX" != 0 ]; then
  ssh-keygen -q -t ed25519 -N '' -f "$run/host" && exec /usr/sbin/sshd -D -e -p 2222 -h "$run/host" -o PidFile=none -o UsePAM=no \
    -o StrictModes=no -o PasswordAuthentication=no -o AuthorizedKeysFile=/ssh/authorized_keys
fi
hosts=$LWS_LEADER_ADDRESS:$SLOTS
for i in $(seq $((LWS_GROUP_SIZE - 1))); do  # LEADER.REST, LEADER-1.REST, ...
  host=${LWS_LEADER_ADDRESS%%.*}-$i.${LWS_LEADER_ADDRESS#*.}
  hosts=$hosts,$host:$SLOTS
done
trap 'kill -TERM "$(cat "$run/0")"' TERM
# Ranks write where they are found, the first one's number here.
mpirun --host "$hosts" -n $((LWS_GROUP_SIZE * SLOTS)) --bind-to none \
  --mca plm_rsh_agent 'ssh -p 2222 -i /ssh/id -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o ConnectionAttempts=60' \
  sh -c '[ "$PMIX_RANK" != 0 ] || echo $$ >"$0/0"; exec "$@"' "$run" "${ENTROPYINFER:-entropyinfer}" "$@" &
while kill -0 $! 2>/dev/null; do
  wait $!
  code=$?
done
exit "$code"
