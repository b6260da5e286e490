"""What hosts say of themselves: the output of host_facts.sh, as recorded, with changes."""

from dataclasses import replace

from llx.bootstrap.host_facts_text import parse

CPU_HOST = """
llx-facts 1
clock	1795415640.362264758
hostname	node7
user	ann	1000	staff
home	/home/ann
home_writable
kernel	Linux	6.1.0-25-amd64	x86_64
glibc	glibc 2.36
machine_id	3d1219c7c4c5404aaa1f6d2a48adfda4
boot_id	f241dcc8-5223-4ec4-b1b7-c32125937581
ssh	10.0.0.1 51422 10.0.0.7 22
sudo
open_files	1024	1048576
ephemeral_ports	32768	60999
cpus	16
meminfo	MemTotal	65536000
meminfo	MemFree	1048576
meminfo	MemAvailable	52428800
disk	home	103081248	73400320	/dev/sda1
disk	tmp	103081248	73400320	/dev/sda1
disk	shm	32768000	32768000	tmpfs
home_identity	2049:131073	ext2/ext3
address	127.0.0.1
address	::1
address	10.0.0.7
address	fe80::fc:ff:fe00:7
python	/usr/bin/python3.11	3.11.2	/usr	venv	-
end
"""

GPU_HOST = (
    CPU_HOST.replace("node7", "gpu1")
    .replace("10.0.0.7", "10.0.0.21")
    .replace("f241dcc8", "a111dcc8")
    .replace(
        "end\n",
        """nvidia_driver
gpu	0, GPU-5f0c3a1e-1, NVIDIA H100 80GB HBM3, 81559, 1, 580.95.05
gpu	1, GPU-5f0c3a1e-2, NVIDIA H100 80GB HBM3, 81559, 41200, 580.95.05
gpu_user	GPU-5f0c3a1e-2	4711	41190	bob		/opt/conda/bin/python
end
""",
    )
)


def said(text=CPU_HOST, *more, without=(), **changes):
    """`text` with lines replaced by their keys, others left out, and `more` added."""
    lines = []
    for line in text.strip().splitlines()[:-1]:
        key = line.partition("\t")[0]
        if key in without:
            continue
        if key in changes:
            lines.append(f"{key}\t{changes[key]}")
        else:
            lines.append(line)
    return "\n".join(["", *lines, *more, "end", ""])


def facts(host="h1", text=CPU_HOST, /, **changes):
    """Facts of a recorded host, some of them others than recorded."""
    found = parse(text, began=1795415640.36, heard=1795415640.364)
    found = replace(found, host=host, cluster_address=found.server_address)
    return replace(found, **changes)


def hosts(count=3, text=CPU_HOST, **changes):
    """Facts of several hosts, alike but different machines."""
    return {
        f"h{index}": facts(
            f"h{index}",
            text,
            **{
                "boot_id": f"boot-{index}",
                "home_identity": f"boot-{index} 1:1",
                "addresses": ("127.0.0.1", f"10.0.0.{index}"),
                "cluster_address": f"10.0.0.{index}",
                **changes,
            },
        )
        for index in range(1, count + 1)
    }
