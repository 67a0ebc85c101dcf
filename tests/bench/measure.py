"""Runs one program natively or in a guest, or one boot, and says what that cost.

The figure is processor seconds of the whole process: all its threads, user and kernel time; natively with all children.
In a guest it is read at two marks on the serial port at which the guest waits for input, so that a late reader of the
marks does no harm (payload/guest/init describes them).
"""
import collections, json, os, re, resource, subprocess, sys, time

HERE = os.path.dirname(os.path.abspath(__file__))
BOOT = os.path.join(HERE, "..", "media", "boot")
sys.path.insert(0, os.path.join(HERE, "..", "media"))
from machine import MEDIA, Failed, Machine  # noqa: E402

PAYLOAD = os.path.join(MEDIA, "bench")
MACHINE = ("-M pc -m 512 -no-reboot -nic none -kernel {media}/bench/vmlinuz -initrd {media}/bench/initrd.img "
           "-append 'console=ttyS0,115200 panic=-1 loglevel=3 rdinit=/init'")
LACKING = 77  # the status of a program whose instruction set this processor lacks

NOT_RUN = "NOT RUN"  # how the verdict of a program begins whose guest did not start

# verdict: "ok", "n/a", or what failed. memory: the most the process ever held, in MiB; None natively.
Sample = collections.namedtuple("Sample", "verdict cpu wall memory")


def verdict_of(status, said):
    if status == 0:
        return "ok"
    return "n/a" if status == LACKING else f"FAILED: status {status}, {said or 'no words'}"


class Native:
    """This machine's own processor, with the very same files."""

    def run(self, program, iterations, limit):
        root = os.path.join(PAYLOAD, "root")
        environment = {"BENCH": os.path.join(root, "bench"), "PATH": os.path.join(root, "bin")}
        command = [os.path.join(root, "bin", "busybox"), "sh", os.path.join(root, "bench", "start"), program, str(iterations)]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        try:
            done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit)
        except subprocess.TimeoutExpired:
            return Sample(f"FAILED: not done within {limit:.0f} s", 0, time.monotonic() - start, None)
        wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        said = (done.stdout + done.stderr).decode("latin-1").strip().split("\n")[-1]
        return Sample(verdict_of(done.returncode, said), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall, None)

    def close(self):
        pass


class Guest:
    """A guest in an emulator. Started when first needed, and anew after a failure."""

    def __init__(self, command, log):
        self.command, self.log, self.machine, self.broken = command, log, None, None

    def run(self, program, iterations, limit):
        if self.broken:
            return Sample(self.broken, 0, 0, 0)
        try:
            if not self.machine:
                self.start(limit)
            return self.measure(program, iterations, limit)
        except (Failed, OSError, ValueError) as problem:
            if not self.machine:  # it will not start the next time either
                self.broken = f"{NOT_RUN}: the guest did not start: {problem}"
            self.close()
            return Sample(self.broken or f"FAILED: {problem}", 0, 0, 0)

    def start(self, limit):
        machine = Machine(self.command, MACHINE, float("inf"), False)
        try:
            machine.wait_serial(r"BENCH READY\r?\n", limit)
        except Failed as problem:
            self.keep_log(machine)
            machine.close()
            panic = re.search(r"Kernel panic[^\r\n]*", machine.text)
            raise Failed(panic[0] if panic else str(problem)) from problem
        self.machine = machine

    def measure(self, program, iterations, limit):
        machine = self.machine
        machine.type(f"{program} {iterations}\n")
        machine.wait_serial(rf"BENCH BEGIN {program}\r?\n", 60)
        machine.pump(0.05)  # until it sleeps
        machine.measure()
        cpu, start, began = machine.cpu, machine.elapsed(), len(machine.text)
        machine.type("\n")
        machine.wait_serial(rf"BENCH END {program} \d+\r?\n", limit)
        cpu, wall = machine.cpu - cpu, machine.elapsed() - start
        machine.wait_serial(r"BENCH SAID [^\n]*\n", 60)
        text = machine.text[began:]
        status = int(re.search(rf"BENCH END {program} (\d+)", text)[1])
        return Sample(verdict_of(status, re.search(r"BENCH SAID ([^\r\n]*)", text)[1]), cpu, wall, machine.memory)

    def keep_log(self, machine):
        with open(self.log, "a", encoding="latin-1") as file:
            file.write(f"---- {self.command}\n{machine.text}\n")

    def close(self):
        if self.machine:
            self.keep_log(self.machine)
            self.machine.close()
        self.machine = None


def boot(command, scenario, mark, limit):
    """Boots a medium until a milestone, from the start of the process."""
    done = subprocess.run([BOOT, "--json", "--until", mark, "--limit", str(limit), "--with", command, scenario],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    try:
        result = json.loads(done.stdout)
    except ValueError:
        return Sample(f"FAILED: {done.stderr.strip()[-200:] or 'no result'}", 0, 0, 0)
    reached = [at for at in result["marks"] if at["mark"] == mark]
    if result["verdict"] != "ok" or not reached:
        return Sample(result["verdict"] if result["verdict"] != "ok" else "FAILED: milestone not reached", 0, 0, result["memory_mib"])
    return Sample("ok", reached[-1]["cpu"], reached[-1]["wall"], result["memory_mib"])
