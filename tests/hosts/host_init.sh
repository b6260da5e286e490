#!/bin/bash
# Process 1 of a namespace host. Started by rig.py inside new mount, uts, ipc, net and pid
# namespaces; makes the host's own root over this machine's, then runs sshd and reaps orphans.
#
#   H_NAME  host name              H_DIR    its directory here: keys, mount points, kept layer
#   H_SIZE  of its tmpfs           H_KEEP   1: its disk survives power cycles
#   H_HOSTS lines for /etc/hosts   H_USER, H_UID  the ordinary user
#   H_SSHD  lines for sshd_config
#   H_BINDS lines "source<TAB>target", read-only      H_HIDE  lines, shell patterns
set -e
mount --make-rprivate /
hostname "$H_NAME"
root=$H_DIR/root layer=$H_DIR/layer
mkdir -p "$root" "$layer"
[ "$H_KEEP" = 1 ] || mount -t tmpfs -o "size=$H_SIZE,mode=755" layer "$layer"
mkdir -p "$layer"/{upper,work,masks}
mount -t overlay host -o "lowerdir=/,upperdir=$layer/upper,workdir=$layer/work" "$root"

mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=755,size=1m dev "$root/dev"
for each in null zero full random urandom tty; do
  touch "$root/dev/$each"
  mount --bind "/dev/$each" "$root/dev/$each"
done
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"
mkdir "$root"/dev/{shm,pts}
mount -t tmpfs -o mode=1777,size=2g shm "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"

# Of this machine a host sees the operating system only: all else is empty and its own.
for path in /* /usr/local /var/tmp; do
  case $path in
    /bin | /boot | /dev | /etc | /lib* | /proc | /sbin | /sys | /usr | /var) continue ;;
  esac
  [ -d "$path" ] && [ ! -L "$path" ] || continue
  mask=$layer/masks/${path//\//_}
  case $path in /tmp | /run | /var/tmp) rm -rf "$mask" ;; esac
  mkdir -p "$mask" "$root$path"
  mount --bind "$mask" "$root$path"
done
chmod 1777 "$root"/tmp "$root"/var/tmp
chmod 711 "$root/root" # what is bound below it must be reachable by everybody
mkdir -p "$root/run/sshd"
while IFS=$'\t' read -r source target; do
  [ -n "$source" ] || continue
  if [ -d "$source" ]; then mkdir -p "$root$target"; else
    mkdir -p "$root${target%/*}"
    [ -e "$root$target" ] || touch "$root$target"
  fi
  mode=$(stat -c %a "$source")
  if [ -d "$source" ] && [ $((${mode: -1} & 5)) -ne 5 ]; then
    # Ours alone, as a clone in a private directory is: a host's user must get in all the same.
    over=$layer/over${target//\//_}
    mkdir -p "$over"/{upper,work}
    mount -t overlay host -o "lowerdir=$source,upperdir=$over/upper,workdir=$over/work" "$root$target"
    chmod 755 "$root$target"
    continue
  fi
  mount --bind "$source" "$root$target"
  mount -o remount,bind,ro "$root$target"
done <<<"$H_BINDS"
while read -r pattern; do
  [ -z "$pattern" ] || rm -rf "$root"$pattern
done <<<"$H_HIDE"

echo "$H_NAME" >"$root/etc/hostname"
printf '127.0.0.1 localhost\n%s\n' "$H_HOSTS" >"$root/etc/hosts"
for file in passwd group shadow; do
  grep -v "^$H_USER:" "/etc/$file" >"$root/etc/$file.new" || true
done
echo "$H_USER:x:$H_UID:$H_UID::/home/$H_USER:/bin/bash" >>"$root/etc/passwd.new"
echo "$H_USER:x:$H_UID:" >>"$root/etc/group.new"
echo "$H_USER:*:19000:0:99999:7:::" >>"$root/etc/shadow.new"
for file in passwd group shadow; do
  chmod --reference="/etc/$file" "$root/etc/$file.new"
  mv "$root/etc/$file.new" "$root/etc/$file"
done
for home in root "home/$H_USER"; do
  mkdir -p "$root/$home/.ssh"
  cp "$H_DIR/authorized_keys" "$root/$home/.ssh/"
  chmod -R go-rwx "$root/$home/.ssh"
done
chmod 750 "$root/home/$H_USER"
chown -R "$H_UID:$H_UID" "$root/home/$H_USER"
rm -f "$root"/etc/ssh/ssh_host_*
cp "$H_DIR"/ssh_host_ed25519_key{,.pub} "$root/etc/ssh/"
cat >"$root/etc/ssh/sshd_config" <<'CONFIG'
HostKey /etc/ssh/ssh_host_ed25519_key
PasswordAuthentication no
KbdInteractiveAuthentication no
PubkeyAuthentication yes
PermitRootLogin prohibit-password
UsePAM no
UseDNS no
PidFile none
Subsystem sftp internal-sftp
CONFIG
echo "$H_SSHD" >>"$root/etc/ssh/sshd_config"

ip link set lo up
cd "$root"
mkdir -p mnt/.old
pivot_root . mnt/.old
cd /
umount -l /mnt/.old
rmdir /mnt/.old
env -i PATH="$PATH" "$(command -v sshd)" -D -e </dev/null >/dev/null 2>/run/sshd.log &
trap 'exit 0' TERM
while :; do
  sleep 86400 &
  wait $!
done
