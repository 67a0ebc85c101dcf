"""What the bench runs: programs of the payload, in groups, and boots.

`iterations` is how often a program does its unit of work in one run, chosen so that QEMU's software CPU needs two to
three seconds of processor time for it on a machine of 2023; for SIMD six, since the bare processor would otherwise be
done in 15 to 40 ms, of which the program's start is a large part. Each unit checks its own result. A program is a file
payload/NAME.c or payload/whole/NAME, whose first lines say what it does.
"""
import collections

Program = collections.namedtuple("Program", "name group iterations")
Boot = collections.namedtuple("Boot", "name medium scenario mark what goal")

# (name, what it is called in tables, how many times faster than QEMU's software CPU it is to be; None: no goal of its own)
GROUPS = [
    ("integer", "Integer", 3),
    ("fp", "Floating point", 10),
    ("simd", "SIMD", 25),
    ("system", "System", 3),
    ("weak", "Weak cases", None),
    ("whole", "Whole programs", None),
]

PROGRAMS = [
    Program("coremix", "integer", 50),
    Program("sieve", "integer", 60),
    Program("sha256", "integer", 40),
    Program("lz", "integer", 80),
    Program("hashchase", "integer", 7),
    Program("quicksort", "integer", 60),
    Program("bytecode", "integer", 6),
    Program("calls", "integer", 40),
    Program("nbody", "fp", 25),
    Program("linpack", "fp", 60),
    Program("mandelbrot", "fp", 20),
    Program("x87", "fp", 30),
    Program("sse2int", "simd", 120),
    Program("ssematrix", "simd", 120),
    Program("avx2int", "simd", 320),
    Program("avx2matrix", "simd", 140),
    Program("getpid", "system", 200),
    Program("forkexec", "system", 20),
    Program("pipes", "system", 25),
    Program("pagefaults", "system", 25),
    Program("tmpfs", "system", 40),
    Program("jitgen", "weak", 20),
    Program("smc", "weak", 60),
    Program("repstring", "weak", 60),
    Program("cr3ring", "weak", 30),
    Program("aslrstart", "weak", 9),
    Program("gzip", "whole", 8),
    Program("openssl", "whole", 3),
    Program("sqlite", "whole", 5),
    Program("python", "whole", 5),
]

# Scenarios of tests/media/boot, each until one of its milestones; the medium is tests/media/build's name for it.
BOOTS = [
    Boot("boot-kernel", "linux", "linux", "INIT-START", "`-kernel` to the first word of init", 2),
    Boot("boot-iso", "tiny-iso", "tiny-iso", "shell-42", "BIOS and ISO to an answering shell", None),
    Boot("boot-installer-text", "installer-text-iso", "installer-text", "Select a language",
         "Debian's text installer to its first question", 3),
    Boot("boot-installer-gtk", "installer-gtk-iso", "installer-gtk", "picture",
         "Debian's graphical installer to its first page, at rest", 3),
]
