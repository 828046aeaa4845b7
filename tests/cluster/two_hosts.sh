#!/usr/bin/env bash
# Two network namespaces, NAME-0 and NAME-1, with a wire between their interfaces "wire" and none to
# the world, until standard input ends:
#
#   two_hosts.sh NAME
#
# They know each other as selfdistill-0.selfdistill and selfdistill-1.selfdistill. Says "ready" once
# they are there. Whatever ends this script removes them.
set -eu
name=$1
end() {
  trap - EXIT
  set +e
  for host in 0 1; do
    ip netns pids "$name-$host" | xargs --no-run-if-empty kill -KILL
    ip netns delete "$name-$host"
    rm -r "/etc/netns/$name-$host"
  done
}
trap end EXIT
trap 'exit 1' TERM INT HUP
for host in 0 1; do
  # "ip netns exec" lays these over those of /etc; no name server answers in there
  mkdir -p "/etc/netns/$name-$host"
  cat >"/etc/netns/$name-$host/hosts" <<END
127.0.0.1 localhost $(hostname)
::1 localhost
10.99.0.1 selfdistill-0.selfdistill
10.99.0.2 selfdistill-1.selfdistill
END
  echo 'nameserver 127.0.0.1' >"/etc/netns/$name-$host/resolv.conf"
  ip netns add "$name-$host"
done
ip -n "$name-0" link add wire type veth peer name wire netns "$name-1"
for host in 0 1; do
  ip -n "$name-$host" address add "10.99.0.$((host + 1))/24" dev wire
  ip -n "$name-$host" link set wire up
  ip -n "$name-$host" link set lo up
done
echo ready
cat >/dev/null
