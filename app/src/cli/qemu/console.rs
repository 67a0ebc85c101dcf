//! Connects streams to what uses them: a serial port, a monitor, or both on one stream (Ctrl-A switches, as in QEMU).

use engine_bus::{CharHost, CharPort, char_port};
use engine_remote::{Monitor, QmpServer};
use engine_session::{Command, Output, Session, SocketFile, Stream, StreamError, StreamTarget, StreamUser};
use std::thread::JoinHandle;

/// A serial port's two ends: the machine gets one, the stream the other.
pub struct Serial {
    stream: Stream,
    host: CharHost,
    sharing: Sharing,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    Alone,
    WithMonitor,
}

impl Serial {
    /// Opens the stream and makes the port for the machine.
    pub fn open(target: &StreamTarget, sharing: Sharing) -> Result<(CharPort, Self), StreamError> {
        let stream = Stream::open(target)?;
        let output = stream.output();
        let (port, host) = char_port(move |bytes| output.send(bytes));
        Ok((port, Self { stream, host, sharing }))
    }

    /// The file of the socket that it listens on.
    pub fn socket_file(&self) -> Option<SocketFile> {
        self.stream.socket_file()
    }

    /// Lets input flow, once the machine is there.
    pub fn start(self, session: &Session) -> std::io::Result<()> {
        let output = self.stream.output();
        match self.sharing {
            Sharing::Alone => self.stream.start(SerialUser(self.host)),
            Sharing::WithMonitor => {
                let monitor = Monitor::new(session.clone(), output.clone());
                let user = SharedStream {
                    host: self.host,
                    monitor,
                    output,
                    session: session.clone(),
                    focus: Focus::Serial,
                    escaped: false,
                };
                self.stream.start(user)
            }
        }
    }
}

/// Opens a monitor and starts it.
pub fn monitor(target: &StreamTarget, session: &Session) -> anyhow::Result<Option<SocketFile>> {
    let stream = Stream::open(target)?;
    let file = stream.socket_file();
    let monitor = Monitor::new(session.clone(), stream.output());
    stream.start(monitor)?;
    Ok(file)
}

/// Opens a QMP server and starts it; the thread sends its events.
pub fn qmp(target: &StreamTarget, session: &Session, name: &str) -> anyhow::Result<(Option<SocketFile>, Option<JoinHandle<()>>)> {
    let stream = Stream::open(target)?;
    let file = stream.socket_file();
    let mut server = QmpServer::new(session.clone(), name, stream.output());
    let teller = server.take_event_thread();
    stream.start(server)?;
    Ok((file, teller))
}

struct SerialUser(CharHost);

impl StreamUser for SerialUser {
    fn connected(&mut self) {
        self.0.set_connected(true);
    }
    fn input(&mut self, bytes: &[u8]) -> usize {
        self.0.feed(bytes)
    }
    fn disconnected(&mut self) {
        self.0.set_connected(false);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Focus {
    Serial,
    Monitor,
}

/// Ctrl-A: the key that talks to us and not to the guest.
const ESCAPE: u8 = 1;

struct SharedStream {
    host: CharHost,
    monitor: Monitor,
    output: Output,
    session: Session,
    focus: Focus,
    escaped: bool,
}

impl StreamUser for SharedStream {
    fn connected(&mut self) {
        self.host.set_connected(true);
    }

    fn disconnected(&mut self) {
        self.host.set_connected(false);
        (self.focus, self.escaped) = (Focus::Serial, false);
    }

    fn input(&mut self, bytes: &[u8]) -> usize {
        for (at, byte) in bytes.iter().enumerate() {
            match (std::mem::take(&mut self.escaped), *byte) {
                (false, ESCAPE) => self.escaped = true,
                (true, b'x') => {
                    self.output.send(b"\r\nBellglass: terminated\r\n");
                    self.session.send(Command::Quit);
                }
                (true, b'c') => self.switch(),
                (true, b'h' | b'?') => self.output.send(
                    b"\r\nCtrl-A x  end the machine\r\nCtrl-A c  switch between serial port and monitor\r\nCtrl-A Ctrl-A  send Ctrl-A\r\n",
                ),
                (false | true, byte) => {
                    let taken = match self.focus {
                        Focus::Serial => self.host.feed(&[byte]),
                        Focus::Monitor => self.monitor.input(&[byte]),
                    };
                    if taken == 0 {
                        return at;
                    }
                }
            }
        }
        bytes.len()
    }
}

impl SharedStream {
    fn switch(&mut self) {
        self.focus = match self.focus {
            Focus::Serial => Focus::Monitor,
            Focus::Monitor => Focus::Serial,
        };
        if self.focus == Focus::Monitor {
            self.monitor.connected();
        } else {
            self.output.send(b"\r\n");
        }
    }
}
