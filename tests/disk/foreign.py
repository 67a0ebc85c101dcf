"""Disk images as VirtualBox, VMware and Virtual PC write them, made from bytes that are given.

Neither our tools nor QEMU's make such files, but people have them: other figures in headers, other orders of blocks, streams
with every marker, disks in several files. Each maker below writes its files into a folder and returns the one to open.
"""
import random, struct, uuid, zlib

MIB = 1 << 20


def sector(data):
    return data + bytes(-len(data) % 512)


# VirtualBox's VDI


def virtualbox_vdi(folder, content, rng):
    """A dynamic disk: VirtualBox's text, a data area at a whole mebibyte, blocks in the order of their first write."""
    blocks = -(-len(content) // MIB)
    order = [index for index in range(blocks) if any(content[index * MIB : (index + 1) * MIB])]
    rng.shuffle(order)
    table = [0xFFFFFFFF] * blocks
    for place, index in enumerate(order):
        table[index] = place
    for index in range(blocks):
        # Blocks that were freed say so in another way than blocks that never were.
        if table[index] == 0xFFFFFFFF and rng.random() < 0.3:
            table[index] = 0xFFFFFFFE
    header = bytearray(512)
    header[0:40] = b"<<< Oracle VM VirtualBox Disk Image >>>\n"
    struct.pack_into("<IIII", header, 64, 0xBEDA107F, 0x00010001, 0x190, 1)
    header[84:99] = b"made for a test"
    struct.pack_into("<II", header, 0x154, MIB // 2, MIB)
    struct.pack_into("<III", header, 0x15C, 0, 0, 0)
    struct.pack_into("<I", header, 0x168, 512)
    struct.pack_into("<QIIII", header, 0x170, len(content), MIB, 0, blocks, len(order))
    header[0x188:0x198], header[0x198:0x1A8] = uuid.UUID(int=rng.getrandbits(128)).bytes, uuid.UUID(int=rng.getrandbits(128)).bytes
    struct.pack_into("<IIII", header, 0x1C8, 16, 16, 63, 512)
    path = folder / "virtualbox.vdi"
    with path.open("wb") as file:
        file.write(header)
        file.seek(MIB // 2)
        file.write(struct.pack(f"<{blocks}I", *table))
        for place, index in enumerate(order):
            file.seek(MIB + place * MIB)
            file.write(content[index * MIB : (index + 1) * MIB].ljust(MIB, b"\0"))
    return path, "vdi"


# VHD with the footers of its many makers


def geometry(sectors):
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    per_track = 17
    tracks = sectors // per_track
    heads = max(-(-tracks // 1024), 4)
    if tracks >= heads * 1024 or heads > 16:
        per_track, heads = 31, 16
        tracks = sectors // per_track
    if tracks >= heads * 1024:
        per_track, heads = 63, 16
        tracks = sectors // per_track
    return tracks // heads, heads, per_track


def summed(data, at):
    struct.pack_into(">I", data, at, ~sum(data[:at] + data[at + 4 :]) & 0xFFFFFFFF)
    return bytes(data)


def vhd_footer(rng, creator, host, size, kind, data_offset):
    footer = bytearray(512)
    cylinders, heads, per_track = geometry(size // 512)
    struct.pack_into(">8sIIQI4sI4sQQHBBI", footer, 0, b"conectix", 2, 0x10000, data_offset, rng.getrandbits(29), creator, 0x60001, host, size, size, cylinders, heads, per_track, kind)
    footer[68:84] = rng.randbytes(16)
    return summed(footer, 64)


def vhd_size(content, creator):
    """What a disk of this maker holds: some of them mean the geometry, whatever the size says."""
    if creator in (b"win ", b"d2v ", b"tap\0"):
        return len(content)
    cylinders, heads, per_track = geometry(len(content) // 512)
    return cylinders * heads * per_track * 512


def other_vhd(folder, content, rng):
    creator, host = rng.choice([(b"vpc ", b"Wi2k"), (b"vbox", b"Wi2k"), (b"win ", b"Wi2k"), (b"vs  ", b"Wi2k"), (b"tap\0", bytes(4)), (b"d2v ", b"Wi2k"), (b"vpc ", b"Mac ")])
    content = content[: vhd_size(content, creator)]
    size = len(content)
    path = folder / "other.vhd"
    if rng.random() < 0.3:
        path.write_bytes(content + vhd_footer(rng, creator, host, size, 2, 0xFFFFFFFFFFFFFFFF))
        return path, "vpc", content
    block = rng.choice([512 << 10, MIB, 2 * MIB])
    blocks = -(-size // block)
    footer = vhd_footer(rng, creator, host, size, 3, 512)
    # Some keep a longer table than they need, and put it further on.
    entries, table_at = blocks + rng.choice([0, 0, 7, 200]), rng.choice([1536, 2048, 4096])
    header = bytearray(1024)
    struct.pack_into(">8sQQIII", header, 0, b"cxsparse", 0xFFFFFFFFFFFFFFFF, table_at, 0x10000, entries, block)
    header = summed(header, 36)
    marks = -(-block // 512 // 8 // 512) * 512
    order = [index for index in range(blocks) if any(content[index * block : (index + 1) * block])]
    rng.shuffle(order)
    at = -(-(table_at + entries * 4) // 512) * 512
    table = [0xFFFFFFFF] * entries
    with path.open("wb") as file:
        file.write(footer + header)
        for index in order:
            table[index] = at // 512
            file.seek(at)
            file.write(b"\xff" * (block // 512 // 8) + bytes(marks - block // 512 // 8))
            file.write(content[index * block : (index + 1) * block].ljust(block, b"\0"))
            at += marks + block
        file.seek(at)
        file.write(footer)
        file.seek(table_at)
        file.write(struct.pack(f">{entries}I", *table))
    return path, "vpc", content


# VMware's VMDK

GRAIN = 128 * 512


def descriptor(rng, create_type, lines, size):
    return (
        f'# Disk DescriptorFile\nversion=1\nencoding="windows-1252"\nCID={rng.getrandbits(31):08x}\nparentCID=ffffffff\n'
        f'isNativeSnapshot="no"\ncreateType="{create_type}"\n\n# Extent description\n' + "".join(line + "\n" for line in lines) + "\n"
        "# The Disk Data Base \n#DDB\n\nddb.adapterType = \"lsilogic\"\nddb.deletable = \"true\"\n"
        f'ddb.geometry.cylinders = "{size // 512 // 255 // 63}"\nddb.geometry.heads = "255"\nddb.geometry.sectors = "63"\n'
        f'ddb.longContentID = "{rng.getrandbits(128):032x}"\nddb.toolsVersion = "10346"\nddb.virtualHWVersion = "14"\n'
    ).encode()


def sparse_header(version, flags, capacity, descriptor_at, descriptor_sectors, redundant, directory, overhead, compression):
    return struct.pack("<4sIIQQQQIQQQB4sH433x", b"KDMV", version, flags, capacity // 512, GRAIN // 512, descriptor_at, descriptor_sectors, 512, redundant, directory, overhead, 0, b"\n \r\n", compression)


def tables(grains, sectors_of):
    """Grain tables as VMware fills them: whole ones of 512 entries."""
    entries = [sectors_of.get(index, 0) for index in range(grains)]
    entries += [0] * (-len(entries) % 512)
    return [struct.pack("<512I", *entries[at : at + 512]) for at in range(0, len(entries), 512)]


def vmware_stream(folder, content, rng):
    """streamOptimized as the tools that export machines write it: a mark before every table, the directory and the footer."""
    size = len(content)
    words = descriptor(rng, "streamOptimized", [f'RW {size // 512} SPARSE "stream.vmdk"'], size)
    flags = 0x30001
    out = bytearray(sparse_header(3, flags, size, 1, 20, 0, 0xFFFFFFFFFFFFFFFF, 128, 1))
    out += words.ljust(20 * 512, b"\0")
    out += bytes(128 * 512 - len(out))
    grains = -(-size // GRAIN)
    placed = {}
    directory = []
    for table in range(-(-grains // 512)):
        for index in range(table * 512, min(grains, table * 512 + 512)):
            data = content[index * GRAIN : (index + 1) * GRAIN]
            if any(data):
                placed[index] = len(out) // 512
                packed = zlib.compress(data.ljust(GRAIN, b"\0"), rng.choice([1, 6, 9]))
                out += sector(struct.pack("<QI", index * (GRAIN // 512), len(packed)) + packed)
        # The mark of a table stands behind the grains that it describes.
        out += sector(struct.pack("<QII", 4, 0, 1))
        directory.append(len(out) // 512)
        out += tables(512, {index - table * 512: at for index, at in placed.items() if index // 512 == table})[0]
    directory_bytes = sector(struct.pack(f"<{len(directory)}I", *directory))
    out += sector(struct.pack("<QII", len(directory_bytes) // 512, 0, 2))
    directory_at = len(out) // 512
    out += directory_bytes
    out += sector(struct.pack("<QII", 1, 0, 3))
    out += sparse_header(3, flags, size, 1, 20, 0, directory_at, 128, 1)
    out += bytes(512)
    path = folder / "stream.vmdk"
    path.write_bytes(out)
    return path, "vmdk"


def sparse_extent(path, content, rng):
    """An extent of a split disk: no descriptor in it, two directories, grains in the order in which they were written."""
    size = len(content)
    grains = -(-size // GRAIN)
    count = -(-grains // 512)
    directory_sectors = -(-count * 4 // 512)
    redundant = 1
    main = redundant + directory_sectors + count * 4
    overhead = -(-(main + directory_sectors + count * 4) // 128) * 128
    order = [index for index in range(grains) if any(content[index * GRAIN : (index + 1) * GRAIN])]
    rng.shuffle(order)
    placed = {index: overhead + number * 128 for number, index in enumerate(order)}
    with path.open("wb") as file:
        file.write(sparse_header(1, 3, size, 0, 0, redundant, main, overhead, 0))
        for at in (redundant, main):
            first = at + directory_sectors
            file.seek(at * 512)
            file.write(sector(struct.pack(f"<{count}I", *(first + number * 4 for number in range(count)))))
            file.write(b"".join(tables(grains, placed)))
        file.truncate(overhead * 512)
        for index, at in placed.items():
            file.seek(at * 512)
            file.write(content[index * GRAIN : (index + 1) * GRAIN].ljust(GRAIN, b"\0"))


def vmware_split(folder, content, rng):
    """A disk in several files, as VMware splits them at two gigabytes; here sooner."""
    lines, at, number = [], 0, 0
    while at < len(content):
        length = min(len(content) - at, rng.randrange(8, 200) * GRAIN)
        number += 1
        sparse_extent(folder / f"split-s{number:03}.vmdk", content[at : at + length], rng)
        lines.append(f'RW {length // 512} SPARSE "split-s{number:03}.vmdk"')
        at += length
    path = folder / "split.vmdk"
    path.write_bytes(descriptor(rng, "twoGbMaxExtentSparse", lines, len(content)))
    return path, "vmdk"


def vmware_flat(folder, content, rng):
    """Flat extents, several of them in one file, each at its own offset."""
    lines, at = [], 0
    body = bytearray(rng.randbytes(63 * 512))
    while at < len(content):
        length = min(len(content) - at, rng.randrange(1, 8000) * 512)
        lines.append(f'RW {length // 512} FLAT "flat-flat.vmdk" {len(body) // 512}')
        body += content[at : at + length]
        at += length
    (folder / "flat-flat.vmdk").write_bytes(body)
    path = folder / "flat.vmdk"
    path.write_bytes(descriptor(rng, "twoGbMaxExtentFlat", lines, len(content)))
    return path, "vmdk"


BOTH, OURS, NOBODY = {"ours", "qemu"}, {"ours"}, set()
# Each: how it is made, and who can write to it. QEMU's locks keep itself out where several extents lie in one file.
MAKERS = {
    "virtualbox-vdi": (virtualbox_vdi, BOTH),
    "other-vhd": (other_vhd, BOTH),
    "vmware-stream": (vmware_stream, NOBODY),
    "vmware-split": (vmware_split, BOTH),
    "vmware-flat": (vmware_flat, OURS),
}


def make(name, folder, content, seed):
    """The file to open, its format, and what the disk then holds."""
    made = MAKERS[name][0](folder, content, random.Random(seed))
    return made if len(made) == 3 else (*made, content)
