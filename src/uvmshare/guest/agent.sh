#!/bin/sh
# The agent for guests without Python: busybox's shell and nc, over TCP. As root:
#
#     sh agent.sh --listen 5641 --server 10.0.2.2 --token-file FILE [--allow DIRECTORY] [--state DIRECTORY]
#     sh agent.sh --connect 10.0.2.2:5641 --server 10.0.2.2          # dials the host, again and again
#
# What lives here: the protocol of uvmshare/guest/wire.py as far as a shell can speak it. It mounts, unmounts, lists, tells
# health, and mounts again what cannot be read any more. What it does not have: vsock (busybox has none), paths with
# anything but plain characters, and time limits: a server that takes a connection and says nothing holds up the requests
# that come after, because the kernel does not break off a mount that waits for it, whatever signal is sent.

self=$0
mode=$1
[ "$mode" = serve ] || mode=start
allow=${UVMSHARE_ALLOW:-/run/uvmshare}
state=${UVMSHARE_STATE:-/run/uvmshare-agent}
server=${UVMSHARE_SERVER:-10.0.2.2}
every=${UVMSHARE_CHECK_EVERY:-5}
listen=
connect=
open=

die() {
    printf 'agent.sh: %s\n' "$(printf %s "$1" | tr -c ' -~' '?')" >&2
    exit "${2:-1}"
}

# ---------------------------------------------------------------- what the host says and is told

text() { printf %s "$line" | sed -n "s/.*\"$1\":\"\([^\"\\\\]*\)\".*/\1/p"; }
number() { printf %s "$line" | sed -n "s/.*\"$1\":\([0-9][0-9]*\).*/\1/p"; }
ok() { printf '{"id":%s,"ok":true,"result":%s}\n' "$id" "$1"; }
# Of what programs say, only what needs no escapes in JSON.
no() { printf '{"id":%s,"ok":false,"error":{"code":"%s","message":"%s"}}\n' "$id" "$1" "$(printf %s "$2" | tr -cd ' -!#-[]-~')"; }

# HMAC-SHA-256 (RFC 2104) of what is on standard input, with the token as the key.
hmac() {
    key=$(printf %s "$token" | od -An -v -tx1 | tr -d ' \n')
    [ ${#key} -le 128 ] || key=$(printf %s "$token" | sha256sum | cut -c1-64)
    inner=
    outer=
    for _ in 0 1 2 3 4 5 6 7; do for _ in 0 1 2 3 4 5 6 7; do
        key=${key:-00}
        rest=${key#??}
        byte=$((0x${key%"$rest"}))
        key=$rest
        inner="$inner\\$(((byte ^ 0x36) >> 6))$(((byte ^ 0x36) >> 3 & 7))$(((byte ^ 0x36) & 7))"
        outer="$outer\\$(((byte ^ 0x5c) >> 6))$(((byte ^ 0x5c) >> 3 & 7))$(((byte ^ 0x5c) & 7))"
    done; done
    sum=$({ printf "$inner" && cat; } | sha256sum | cut -c1-64)
    { printf "$outer" && printf "$(echo "$sum" | sed 's/../\\x&/g')"; } | sha256sum | cut -c1-64
}

proof() { printf '%s %s %s' "$1" "$2" "$3" | hmac; }

serve() {
    token=$UVMSHARE_AGENT_TOKEN
    nonce=$(tr -d - </proc/sys/kernel/random/uuid)
    known=false
    [ -z "$token" ] || known=true
    printf '{"uvmshare":"agent","version":1,"agent":"%s","boot":"%s","nonce":"%s","token":%s,"allow":["%s"],"server":"tcp:%s","release":"shell","features":["auto","posixacl"]}\n' \
        "$(cat "$state/agent")" "$(cat /proc/sys/kernel/random/boot_id)" "$nonce" "$known" "$allow" "$server"
    client=
    while read -r line; do
        id=$(number id)
        id=${id:--1}
        op=$(text op)
        # A newer connection of the same client ends this one before anything more is begun.
        [ -z "$client" ] || [ "$(cat "$state/client-$client")" = $$ ] || exit
        case $op in
            hello)
                client=$(text client | tr -cd '0-9a-zA-Z')
                [ -n "$client" ] || exit
                theirs=$(text nonce | tr -cd '0-9a-f')
                if [ -n "$token" ] && [ "$(text proof)" != "$(proof host "$theirs" "$nonce")" ]; then
                    no refused "the token is not this agent's"
                    exit
                fi
                echo $$ >"$state/client-$client"
                ok "{\"proof\":\"$([ -z "$token" ] || proof agent "$nonce" "$theirs")\"}"
                continue
                ;;
        esac
        [ -n "$client" ] || exit
        case $op in
            ping) ok "{\"changes\":$(changes)}" ;;
            modify) modify ;;
            list) ok "[$(each listed)]" ;;
            health) ok "[$(each health)]" ;;
            report) report ;;
            *) no invalid "there is no request $op; this is the shell's agent" ;;
        esac
    done
}

# ---------------------------------------------------------------- the mounts: one file for each, with what it is

record() { echo "$state/mount$(printf %s "$1" | tr / %)"; }

# Read what is kept of a mount; an agent.sh before this one had no word for ACLs.
recall() {
    read -r path share port read_only cache msize posixacl again <"$1" || return
    case $posixacl in true | false) ;; *) again=$posixacl && posixacl=false ;; esac
}

each() {
    comma=
    for file in "$state"/mount%*; do
        [ -e "$file" ] || continue
        recall "$file" || continue
        printf %s "$comma"
        "$1"
        comma=,
    done
}

listed() {
    condition=mounted
    [ -e "$file.broken" ] && condition=broken
    size=$msize
    [ "$size" = auto ] && size=null
    printf '{"mount_path":"%s","share_name":"%s","port":%s,"read_only":%s,"cache":"%s","msize":%s,"posixacl":%s,"chosen":"%s","state":"%s","again":%s}' \
        "$path" "$share" "$port" "$read_only" "$cache" "$size" "$posixacl" "$(chosen)" "$condition" "$again"
}

# Another number when a mount was lost, or mounted again.
changes() {
    sum=0
    for file in "$state"/mount%*; do
        [ -e "$file" ] || continue
        recall "$file" || continue
        sum=$((sum + 2 * again))
        [ ! -e "$file.broken" ] || sum=$((sum + 1))
    done
    echo "$sum"
}

health() { printf '{"mount_path":"%s","status":"%s"}' "$path" "$(condition "$path")"; }

is_mounted() { grep -q " $1 9p " /proc/mounts; }

# Read the mount in a process that is left alone if it hangs: it cannot be killed. Its result has a place of its own: what
# was given up may end while another mount is read, which must not be taken for dead and detached under those who use it.
condition() {
    is_mounted "$1" || { echo missing && return; }
    read -r check </proc/sys/kernel/random/uuid
    place=$state/read.$check
    mkdir "$place"
    { ls -d "$1"/. && ls "$1"; echo $? >"$place/result"; } </dev/null >/dev/null 2>&1 &
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        [ -s "$place/result" ] && break
        sleep 0.1
    done
    case $(cat "$place/result" 2>/dev/null) in
        0) echo ok ;;
        '') echo slow ;;
        *) echo dead ;;
    esac
    rm -rf "$place"
}

# What cache and msize come to: mount.py says why (choose).
chosen() {
    mode=$cache
    if [ "$mode" = auto ]; then
        release=$(uname -r)
        minor=${release#*.}
        mode=mmap
        [ "${release%%.*}" -lt 6 ] || { [ "${release%%.*}" = 6 ] && [ "${minor%%[!0-9]*}" -lt 4 ]; } || mode=mmap,directio
        [ "$read_only" = false ] || mode=none
    fi
    size=$msize
    [ "$size" = auto ] && size=262144
    echo "cache=$mode,msize=$size"
}

mount_it() { # $path and what else is kept of it; says why it failed
    options="nosuid,nodev,trans=tcp,port=$port,version=9p2000.L,aname=$share,uname=root,access=client,$(chosen)"
    [ "$posixacl" = false ] || options="$options,posixacl"
    [ "$read_only" = false ] || options="ro,$options"
    mount -t 9p -o "$options" "$server" "$path" 2>&1 || return
    if [ "$posixacl" = true ] && ! grep -q " $path 9p .*[, ]posixacl[, ]" /proc/mounts; then
        umount -l "$path"
        echo "this kernel passes over posixacl: take one with CONFIG_9P_FS_POSIX_ACL, or mount without ACLs"
        return 1
    fi
}

# ---------------------------------------------------------------- requests

modify() {
    path=$(text MountPath)
    share=$(text ShareName)
    port=$(number Port)
    cache=$(text cache)
    cache=${cache:-auto}
    msize=$(number msize)
    msize=${msize:-auto}
    posixacl=false
    case $line in *'"posixacl":true'*) posixacl=true ;; esac
    read_only=false
    case $line in *'"ReadOnly":true'*) read_only=true ;; esac
    [ "$(text ResourceType)" = MappedDirectory ] || { no invalid "want ResourceType MappedDirectory" && return; }
    case $share in '' | *[!0-9]*) no invalid "want a decimal ShareName" && return ;; esac
    [ -n "$port" ] || { no invalid "want the Port of the file server" && return; }
    case $cache in auto | none | loose | mmap | readahead) ;; *) no invalid "cache $cache: want auto, none, loose, mmap or readahead" && return ;; esac
    case $path in
        '' | *[!a-zA-Z0-9_./+@=-]*) no invalid "MountPath: this agent takes plain characters alone" && return ;;
        */../* | */.. | */./* | */. | *//* | */) no invalid "MountPath $path: write it plainly" && return ;;
        "$allow"/*) ;;
        *) no refused "$path is not below $allow: mount there, or start the agent with --allow" && return ;;
    esac
    tries=0
    until mkdir "$state/lock" 2>/dev/null; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || { no failed "another request does not end" && return; }
        sleep 0.1
    done
    case $(text RequestType) in
        Add) add ;;
        Remove) remove ;;
        *) no invalid "want RequestType Add or Remove" ;;
    esac
    rmdir "$state/lock"
}

add() {
    case $line in *'"suid":true'* | *'"dev":true'*)
        no refused "suid and dev: this agent mounts nosuid and nodev alone: leave them out, or run the agent for Python" && return ;;
    esac
    kept=$(record "$path")
    form="$path $share $port $read_only $cache $msize $posixacl"
    if [ -e "$kept" ] && is_mounted "$path" && [ ! -e "$kept.broken" ]; then
        case $(cat "$kept") in
            "$form "*) recall "$kept" && ok "{\"chosen\":\"$(chosen)\",\"again\":$again}" ;;
            *) no refused "$path is taken by another share: unmount that first" ;;
        esac
        return
    fi
    if [ -e "$kept" ]; then
        umount -l "$path" 2>/dev/null
        rm -f "$kept" "$kept.broken"
    elif grep -q " $path " /proc/mounts; then
        no refused "$path has another mount: choose another path"
        return
    fi
    at=$allow
    made=
    rest=${path#"$allow"/}
    while [ -n "$rest" ]; do
        at=$at/${rest%%/*}
        case $rest in */*) rest=${rest#*/} ;; *) rest= ;; esac
        if [ -L "$at" ]; then
            no refused "$at is a symlink, and no mount goes through one"
            return
        elif [ ! -e "$at" ]; then
            mkdir "$at" && made="$at $made"
        fi
        [ -d "$at" ] || { no refused "$at is not a directory" && return; }
    done
    if why=$(mount_it); then
        echo "$made" >"$state/made$(printf %s "$path" | tr / %)"
        echo "$form 0" >"$kept"
        ok "{\"chosen\":\"$(chosen)\",\"again\":0}"
    else
        for directory in $made; do rmdir "$directory" 2>/dev/null; done
        no failed "cannot mount share $share of tcp:$server:$port on $path: $why"
    fi
}

remove() {
    kept=$(record "$path")
    case $(cat "$kept" 2>/dev/null) in
        "$path $share $port "*) ;;
        *) no not-found "share $share is not mounted on $path" && return ;;
    esac
    lazy=
    case $line in *'"lazy":true'*) lazy=-l ;; esac
    [ -e "$kept.broken" ] && lazy=-l
    # A file system that is in use or not there any more: umount tells no two of them apart.
    if ! is_mounted "$path"; then
        gone=1
    elif why=$(umount $lazy "$path" 2>&1); then
        gone=1
    else
        gone=
    fi
    if [ -z "$gone" ]; then
        case $why in *usy*) no busy "$path is in use: $(users)" ;; *) no failed "$path: $why" ;; esac
        return
    fi
    kept_made=$state/made$(printf %s "$path" | tr / %)
    for directory in $(cat "$kept_made" 2>/dev/null); do rmdir "$directory" 2>/dev/null; done
    rm -f "$kept" "$kept.broken" "$kept_made"
    ok '{}'
}

# One program reads all links: one for each took a loaded guest longer than a host waits for an agent that says nothing.
users() {
    named=
    ls -ln /proc/[0-9]*/cwd /proc/[0-9]*/root /proc/[0-9]*/fd/* 2>/dev/null | while read -r link; do
        case $link in *" -> $path" | *" -> $path/"*) ;; *) continue ;; esac
        process=${link#* /proc/}
        process=${process%%/*}
        [ "$process" != "$named" ] && read -r name <"/proc/$process/comm" && echo "$name (pid $process)"
        named=$process
    done 2>/dev/null | head -n 5 | tr '\n' ' '
}

report() {
    nine=false
    grep -qw 9p /proc/filesystems && nine=true
    fd=false
    [ -d /sys/module/9pnet_fd ] && fd=true
    root=false
    [ "$(id -u)" = 0 ] && root=true
    writable=false
    [ -w "$allow" ] && writable=true
    ok "{\"kernel\":\"$(uname -r)\",\"machine\":\"$(uname -m)\",\"release\":\"shell\",\"modules\":{\"9p\":$nine,\"9pnet_fd\":$fd},\"vsock\":\"busybox has none\",\"time\":$(date +%s),\"root\":$root,\"server\":\"tcp:$server\",\"allow\":[{\"path\":\"$allow\",\"kind\":\"?\",\"writable\":$writable}],\"mounts\":[$(each health)]}"
}

# ---------------------------------------------------------------- mounting again, and starting

# A dead 9P connection never comes back: the kernel answers EIO on it for ever.
watch() {
    while sleep "$every"; do
        for file in "$state"/mount%*; do
            case $file in *.broken | *%\*) continue ;; esac
            mkdir "$state/lock" 2>/dev/null || continue
            if recall "$file"; then
                if [ -e "$file.broken" ] || [ "$(condition "$path")" = dead ]; then
                    : >"$file.broken"
                    umount -l "$path" 2>/dev/null
                    if mount_it >/dev/null; then
                        echo "$path $share $port $read_only $cache $msize $posixacl $((again + 1))" >"$file"
                        rm -f "$file.broken"
                    fi
                fi
            fi
            rmdir "$state/lock"
        done
    done
}

if [ "$mode" = serve ]; then
    serve
    exit
fi
while [ $# -gt 0 ]; do
    [ "$1" = --no-token ] && open=1 && shift && continue
    [ $# -ge 2 ] || die "$1 needs a value" 2
    case $1 in
        --listen) listen=$2 ;;
        --connect) connect=$2 ;;
        --server) server=$2 ;;
        --allow) allow=${2%/} ;;
        --state) state=$2 ;;
        --check-every) every=$2 ;;
        --token-file)
            UVMSHARE_AGENT_TOKEN=$(sed 's/^[[:space:]]*//; s/[[:space:]]*$//' "$2") || die "the token cannot be read from $2"
            [ -n "$UVMSHARE_AGENT_TOKEN" ] || die "$2 is empty: put a secret into it"
            ;;
        *) die "there is no option $1: want --listen PORT or --connect HOST:PORT, --server HOST, --token-file or --no-token, --allow, --state" 2 ;;
    esac
    shift 2
done
[ -n "$listen$connect" ] || die "want --listen PORT or --connect HOST:PORT" 2
[ -z "$listen" ] || [ -n "$UVMSHARE_AGENT_TOKEN$open" ] ||
    die "whoever reaches port $listen could mount and unmount here: give a --token-file, or say --no-token if nobody else can reach it" 2
mkdir -p "$allow" "$state" || die "$allow and $state must be there"
[ -O "$state" ] || die "$state is another user's, who could say there what is mounted: give a directory of your own with --state"
chmod 700 "$state" || die "$state must be writable"
rm -rf "$state/lock" "$state"/read.*
cut -d- -f1 /proc/sys/kernel/random/uuid >"$state/agent"
export UVMSHARE_AGENT_TOKEN UVMSHARE_ALLOW="$allow" UVMSHARE_STATE="$state" UVMSHARE_SERVER="$server"
watch &
if [ -n "$listen" ]; then
    exec nc -ll -p "$listen" -e /bin/sh "$self" serve
fi
while :; do
    nc "${connect%:*}" "${connect##*:}" -e /bin/sh "$self" serve
    sleep 1
done
