"""Drives a program through a pseudo-terminal: terminal.py SCRIPT PROGRAM ARGS... Lines of SCRIPT are typed one by one, each after the
prompt; "^C SECONDS LINE" types a line that does not end, waits and presses Ctrl-C; "^R TEXT" types TEXT as it is, without a line end.
What the program wrote goes to standard output; the exit code is the program's, 99 if it fell silent."""
import os, pty, re, select, signal, sys, time

script, argv = sys.argv[1], sys.argv[2:]
pid, fd = pty.fork()
if pid == 0:
    os.environ.update(TERM="xterm", COLUMNS="100")
    os.execv(argv[0], argv)
seen = b""

def read(timeout):
    global seen
    ready, _, _ = select.select([fd], [], [], timeout)
    if not ready:
        return False
    try:
        data = os.read(fd, 65536)
    except OSError:
        data = b""
    if not data:
        finish()
    seen += data
    sys.stdout.buffer.write(data)
    return True

def finish():
    sys.stdout.buffer.flush()
    _, status = os.waitpid(pid, 0)
    sys.exit(os.waitstatus_to_exitcode(status))

def prompt(timeout=30):
    """Waits for a prompt at the end of what was written."""
    global seen
    end = time.time() + timeout
    while time.time() < end:
        if re.search(rb"(^|[\n\r\x1b\[K])>>? $", seen):
            seen = b""
            return
        read(0.1)
    os.kill(pid, signal.SIGKILL)
    sys.stdout.buffer.write(b"\n-- no prompt came\n")
    sys.stdout.buffer.flush()
    sys.exit(99)

for line in open(script, encoding="utf-8"):
    line = line.rstrip("\n")
    prompt()
    if line.startswith("^C "):
        _, seconds, line = line.split(" ", 2)
        os.write(fd, line.encode() + b"\r")
        end = time.time() + float(seconds)
        while time.time() < end:
            read(0.02)
        seen = b""
        os.write(fd, b"\x03")
    elif line.startswith("^R "):
        os.write(fd, line[3:].encode().decode("unicode_escape").encode())
        time.sleep(0.3)
        while read(0.2):
            pass
        seen = b"\n> "
    else:
        os.write(fd, line.encode() + b"\r")
prompt()
os.write(fd, b"\x04")
end = time.time() + 30
while time.time() < end:
    read(0.1)
