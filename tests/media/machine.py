"""One running emulator, driven from outside: its serial port, its monitor, its screen, and what it costs.

For tests/media/boot and tests/bench. Understands any program that takes QEMU's command line.
"""
import collections, json, os, re, select, shlex, shutil, socket, subprocess, sys, tempfile, time

MEDIA = os.environ.get("BELLGLASS_MEDIA") or os.path.expanduser("~/.cache/bellglass/media")


class Failed(Exception):
    pass


def read_ppm(path):
    data = open(path, "rb").read()
    head = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
    if not head:
        raise Failed("the screendump is not a binary PPM picture")
    return int(head[1]), int(head[2]), data[head.end():]


class Machine:
    """One running emulator: its serial port, its monitor, and its figures."""

    def __init__(self, program, arguments, limit, echo):
        self.folder = tempfile.mkdtemp(prefix="bellglass-boot-")
        command = shlex.split(program) + shlex.split(arguments.format(media=MEDIA)) + [
            "-display", "none", "-serial", "stdio", "-monitor", f"unix:{self.folder}/monitor,server,nowait",
            "-qmp", f"unix:{self.folder}/qmp,server=on,wait=off"]
        self.start, self.limit, self.text = time.monotonic(), limit, ""
        self.echo = echo
        self.read_to = 0  # what came before the last input no longer counts as an answer
        self.cpu, self.memory, self.qmp = 0.0, 0, None
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
                                        stderr=open(f"{self.folder}/errors", "wb"))
        self.serial = self.process.stdout
        try:
            self.greet()
        except BaseException:
            self.close()
            raise

    def errors(self):
        return open(f"{self.folder}/errors", errors="replace").read().strip()[-400:]

    def connect(self, name):
        while True:
            try:
                connection = socket.socket(socket.AF_UNIX)
                connection.connect(f"{self.folder}/{name}")
                return connection
            except OSError:
                connection.close()
                if self.process.poll() is not None:
                    raise Failed(f"it ended at once with status {self.process.returncode}: {self.errors()}") from None
                if self.elapsed() > 20:
                    raise Failed(f"it did not open its {name} within 20 s") from None
                self.pump(0.02)

    def greet(self):
        """Connects to the monitor and reads its greeting, up to the prompt. On a busy computer QEMU sometimes takes a
        connection and never greets: then another one."""
        for _ in range(6):
            self.monitor = self.connect("monitor")
            for _ in range(50):
                self.pump(0)
                if select.select([self.monitor], [], [], 0.1)[0]:
                    self.ask("")
                    return
            self.monitor.close()
        raise Failed("its monitor takes connections but does not answer")

    def elapsed(self):
        return time.monotonic() - self.start

    def measure(self):
        try:
            # The clock of a whole process, all its threads, those that have ended too. See: clock_getcpuclockid(3).
            self.cpu = time.clock_gettime(~self.process.pid << 3 | 2)
            high = re.search(r"VmHWM:\s+(\d+)", open(f"/proc/{self.process.pid}/status").read())
            self.memory = max(self.memory, int(high[1]) // 1024) if high else self.memory
        except (OSError, IndexError):
            pass  # it has just ended; the last figures stand

    def pump(self, wait):
        """Reads what has come on the serial port. Keeps the figures fresh."""
        if self.serial and select.select([self.serial], [], [], wait)[0]:
            try:
                data = os.read(self.serial.fileno(), 65536)
            except OSError:
                data = b""
            self.text += data.decode("latin-1")
            if self.echo:
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
            if not data:
                self.serial = None
        elif not self.serial:
            time.sleep(wait)
        self.measure()

    def check_time(self, what, until=None):
        if self.elapsed() > (until or self.limit):
            raise Failed(f"no {what} within {self.elapsed():.0f} s; the serial port's last words: {self.text[-200:]!r}")

    def wait_serial(self, pattern, seconds):
        until = self.elapsed() + seconds if seconds else None
        while True:
            # Screens drawn on a serial line mix escape sequences into the words.
            plain = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][0-9A-Za-z]|[=>78])", "", self.text[self.read_to:])
            if re.search(pattern, plain):
                return
            if not self.serial and self.process.poll() is not None:
                raise Failed(f"it ended with status {self.process.returncode} before {pattern!r}: {self.text[-200:]!r} {self.errors()}")
            self.check_time(repr(pattern), until)
            self.pump(0.05)

    def type(self, text):
        self.read_to = len(self.text)
        for character in text:  # as a person would: real serial ports have 16 bytes of room
            self.process.stdin.write(character.encode())
            self.pump(0.01)

    def ask(self, line):
        """Sends a monitor command, returns its answer."""
        if line:
            self.monitor.sendall(line.encode() + b"\n")
        answer = ""
        while not answer.rstrip("\r").endswith("(qemu) "):
            self.pump(0)
            self.check_time(f"answer to the monitor command {line!r}")
            if select.select([self.monitor], [], [], 0.1)[0]:
                data = self.monitor.recv(65536)
                if not data:
                    break
                answer += data.decode(errors="replace")
        return answer

    def qmp_command(self, name, arguments):
        if not self.qmp:
            self.qmp = self.connect("qmp").makefile("rw")
            self.qmp.readline()  # its greeting
            self.qmp_command("qmp_capabilities", {})
        self.qmp.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self.qmp.flush()
        while True:
            answer = json.loads(self.qmp.readline() or '{"error": "the QMP connection was closed"}')
            if "error" in answer:
                raise Failed(f"QMP {name}: {answer['error']}")
            if "return" in answer:
                return

    def screen(self):
        path = f"{self.folder}/screen.ppm"
        self.ask(f"screendump {path}")
        for _ in range(50):
            if os.path.exists(path) and os.path.getsize(path) > 20:
                break
            time.sleep(0.1)
        return read_ppm(path)

    def pictures(self):
        """The screen, again and again: its colours, most frequent first, and whether it changed."""
        last = None
        while True:
            self.pump(0.5)
            now = self.screen()
            sample = [now[2][i:i + 3] for i in range(0, len(now[2]), 3 * 7)]
            yield collections.Counter(sample).most_common(), now != last
            last = now
            self.check_time("such a screen")

    def wait_still(self, seconds, least, drawn):
        """Returns the wall and processor seconds at which the picture had come to rest."""
        since = self.elapsed(), self.cpu
        for colours, changed in self.pictures():
            if changed or len(colours) < least or 100 - 100 * colours[0][1] / sum(n for _, n in colours) < drawn:
                since = self.elapsed(), self.cpu
            elif self.elapsed() - since[0] >= seconds:
                return since

    def wait_changing(self, times, least):
        for colours, changed in self.pictures():
            times -= changed and len(colours) >= least
            if times < 0:
                return

    def wait_end(self, status):
        while self.process.poll() is None:
            self.pump(0.05)
            self.check_time("end of the process")
        if self.process.returncode != status:
            raise Failed(f"it ended with status {self.process.returncode}, not {status}")

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
