#!/bin/sh
# Installs the programs that tests need (the lab of ssh hosts, the sandbox), where that may be done; else they say what is
# missing.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
for program in sshd ssh ssh-keygen ip nft nsenter bwrap; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0
echo "installing for the tests:$missing"

# The tests start sshd themselves, on addresses of their own: this machine shall not get one that all can reach.
policy=${LAB_POLICY:-/usr/sbin/policy-rc.d}
if [ ! -e "$policy" ]; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 1' INT TERM
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
install="apt-get install -q -y --no-install-recommends openssh-server openssh-client iproute2 nftables util-linux bubblewrap"
{ $install || { apt-get update -q && $install; }; } >/dev/null 2>&1 || echo "apt-get could not install them"
case $missing in *" sshd"*) systemctl disable ssh.service ssh.socket >/dev/null 2>&1 ;; esac
exit 0
