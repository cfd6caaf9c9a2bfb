#!/bin/sh
# Process 1 of the guest that uvmshare.testing.guest_vm boots.
# It mounts what a system needs, loads the modules, brings the network up, and then carries out the host's commands, one
# at a time on each virtio-serial port.
# GUEST_ROOT and GUEST_CHANNELS come from the kernel's command line, which hands what it does not know to init.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run LC_ALL=C.UTF-8
/bin/busybox --install -s /bin

# Below a directory: the file systems that are the guest's own even when its root is the host's.
mount_system() {
    mount -t proc proc "$1/proc"
    mount -t sysfs sysfs "$1/sys"
    mount -t devtmpfs devtmpfs "$1/dev"
    mount -t tmpfs -o mode=755 tmpfs "$1/run"
    mkdir -p "$1/run/guest"
}

# One command after another from one port: "COMMAND_BYTES INPUT_BYTES\n", then so many bytes of each; back goes
# "STATUS OUTPUT_BYTES\n", then the output. Counted, so that no output can be mistaken for the end of it. A command's
# output goes through a file, so that what it left running in the background cannot write into a later answer.
serve() {
    directory=$root/run/guest
    exec 3<>"$(echo /dev/vport*p"$1")" # vport's own number depends on what else there is
    echo ready >&3
    while read -r command input <&3; do
        rm -f "$directory/$1.output"
        take "$command" >"$directory/$1.command"
        take "$input" >"$directory/$1.input"
        setsid chroot "${root:-/}" /bin/sh "/run/guest/$1.command" \
            <"$directory/$1.input" >"$directory/$1.output" 2>&1 3>&-
        status=$?
        size=$(stat -c %s "$directory/$1.output")
        echo "$status $size" >&3
        head -c "$size" "$directory/$1.output" >&3
    done
    reboot -f # the host's end is closed: nobody needs this guest any more
}

# Exactly so many bytes from the port: one read of that size, because a buffered reader would take more.
take() {
    [ "$1" = 0 ] || dd bs="$1" count=1 iflag=fullblock <&3 2>/run/dd
}

root=
mount_system ''
for module in /modules/*; do
    insmod "$module" || echo "guest: cannot load $module"
done
ip link set lo up
ip address add 10.0.2.15/24 dev eth0 && ip link set eth0 up && ip route add default via 10.0.2.2
if [ "$GUEST_ROOT" = host ]; then
    root=/host
    mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose host $root || reboot -f
    mount_system $root
fi
for channel in $(seq "$GUEST_CHANNELS"); do
    serve "$channel" &
done
while :; do wait; sleep 1; done # process 1 must not end, and the shell collects what lost its parent
