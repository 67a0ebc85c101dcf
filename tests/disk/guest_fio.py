"""fio for a guest: this computer's own, with the libraries it names, in a small ext4 image that a guest mounts.

For tests/disk/guest-speed and tests/disk/debian-root. Needs Debian's fio and e2fsprogs.
"""
import os, pathlib, re, shutil, subprocess, sys

# Run as `sh fio ARGUMENTS` in the folder where the image is mounted.
START = 'here=$(dirname "$0")\nexec "$here/lib/ld.so" --library-path "$here/lib" "$here/lib/fio" "$@"\n'


def folder_with_fio(folder):
    """Puts fio and all it needs into a folder."""
    fio = shutil.which("fio")
    if not fio:
        sys.exit("fio is needed (Debian: fio)")
    libraries = folder / "lib"
    libraries.mkdir(parents=True)
    shutil.copy(fio, libraries / "fio")
    for path in re.findall(r"(?:=> |^\s*)(/\S+) \(0x", subprocess.check_output(["ldd", fio], text=True), re.M):
        name = "ld.so" if os.path.basename(path).startswith("ld-linux") else os.path.basename(path)
        shutil.copy(os.path.realpath(path), libraries / name)
    (folder / "fio").write_text(START)
    return folder


def image(path, folder, label):
    """Makes an ext4 image of a folder's files, with a little room."""
    used = sum(file.stat().st_size + 4096 for file in pathlib.Path(folder).rglob("*") if file.is_file())
    with open(path, "wb") as file:
        file.truncate((used * 5 // 4 + (16 << 20)) & ~0xFFFFF)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-L", label, "-d", folder, path], check=True)
