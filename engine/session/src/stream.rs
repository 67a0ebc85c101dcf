//! Where byte streams lead on the host: terminal, file, socket. Serial ports, the debug port, monitors and QMP all use them.
//!
//! A [`Stream`] is opened, then started with whoever takes its input. What is sent while nobody is connected is dropped,
//! as on a cable that is not plugged in. One client at a time; the next waits until the first has gone. A client that
//! stops reading is let go after a while, so that a guest's port never hangs on it.
//! Threads: `vm-stream` for each stream that has input, ending with the process or the stream.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use engine_base::spawn_guarded;

/// How long a connected client may take nothing of what is sent.
const CLIENT_PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 100 } else { 5000 });

/// Where a stream leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamTarget {
    /// Nowhere.
    Null,
    /// This process's terminal.
    Stdio,
    /// Into a file, from its beginning. No input.
    File(PathBuf),
    /// A Unix socket.
    Unix {
        /// Its path.
        path: PathBuf,
        /// Which side we are.
        role: SocketRole,
    },
    /// A TCP socket.
    Tcp {
        /// `host:port`.
        address: String,
        /// Which side we are.
        role: SocketRole,
    },
}

/// Which side of a socket we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketRole {
    /// We listen, and go on without waiting for anybody.
    Listen,
    /// We listen, and wait for the first client before the machine starts.
    ListenAndWait,
    /// We connect.
    Connect,
}

/// A stream could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("{what} could not be opened: {reason}. {advice}: {place}")]
pub struct StreamError {
    what: &'static str,
    reason: String,
    advice: &'static str,
    place: String,
}

/// An open stream.
pub struct Stream {
    output: Output,
    input: Input,
}

/// The sending end; clones share it.
#[derive(Clone)]
pub struct Output(Arc<Mutex<Option<Box<dyn Write + Send>>>>);

enum Input {
    None,
    Stdin,
    Client(Box<dyn Read + Send>),
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
}

/// What happens on a stream.
pub trait StreamUser: Send + 'static {
    /// Somebody connected.
    fn connected(&mut self) {}
    /// Bytes arrived; returns how many were taken. The rest is offered again a little later.
    fn input(&mut self, bytes: &[u8]) -> usize;
    /// The other side went away.
    fn disconnected(&mut self) {}
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, Option<Box<dyn Write + Send>>> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    /// Sends. When the other side does not take it, it is gone: a guest must not hang on its terminal.
    pub fn send(&self, bytes: &[u8]) {
        let mut output = self.lock();
        if let Some(writer) = output.as_mut()
            && writer.write_all(bytes).and_then(|()| writer.flush()).is_err()
        {
            *output = None;
        }
    }

    fn set(&self, writer: Option<Box<dyn Write + Send>>) {
        *self.lock() = writer;
    }
}

impl Stream {
    /// Opens a target.
    ///
    /// # Errors
    /// When it cannot be had: the sentence says what to do.
    pub fn open(target: &StreamTarget) -> Result<Self, StreamError> {
        let failed =
            |what, advice, place: String| move |error: std::io::Error| StreamError { what, reason: plain(&error), advice, place };
        let output = Output(Arc::new(Mutex::new(None)));
        let input = match target {
            StreamTarget::Null => Input::None,
            StreamTarget::Stdio => {
                output.set(Some(Box::new(std::io::stdout())));
                Input::Stdin
            }
            StreamTarget::File(path) => {
                let file = File::create(path).map_err(failed("The file", "Choose another place", path.display().to_string()))?;
                output.set(Some(Box::new(file)));
                Input::None
            }
            StreamTarget::Unix { path, role: SocketRole::Connect } => {
                let why = failed("The socket", "Start the program that listens there first", path.display().to_string());
                let socket = UnixStream::connect(path).map_err(why)?;
                let why = failed("The socket", "Try again", path.display().to_string());
                let (reader, writer) = unix_ends(socket).map_err(why)?;
                output.set(Some(writer));
                Input::Client(reader)
            }
            StreamTarget::Unix { path, .. } => {
                remove_stale_socket(path);
                let why = failed(
                    "The socket",
                    "Choose another place, or end the program that listens there",
                    path.display().to_string(),
                );
                Input::Unix(UnixListener::bind(path).map_err(why)?, path.clone())
            }
            StreamTarget::Tcp { address, role: SocketRole::Connect } => {
                let why = failed("The connection", "Start the program that listens there first", address.clone());
                let socket = TcpStream::connect(address).map_err(why)?;
                let why = failed("The connection", "Try again", address.clone());
                let (reader, writer) = tcp_ends(socket).map_err(why)?;
                output.set(Some(writer));
                Input::Client(reader)
            }
            StreamTarget::Tcp { address, .. } => {
                let why = failed("The port", "Choose another port, or end the program that uses it", address.clone());
                Input::Tcp(TcpListener::bind(address).map_err(why)?)
            }
        };
        let mut stream = Self { output, input };
        if let StreamTarget::Unix { role: SocketRole::ListenAndWait, path } = target {
            tracing::info!(path = %path.display(), "waiting for a client");
            stream.accept_first();
        }
        if let StreamTarget::Tcp { role: SocketRole::ListenAndWait, address } = target {
            tracing::info!(address, "waiting for a client");
            stream.accept_first();
        }
        Ok(stream)
    }

    /// `wait=on`: the first client becomes the input; when it leaves, the stream stays silent, like a modem hung up.
    fn accept_first(&mut self) {
        let accepted = match &self.input {
            Input::Unix(listener, _) => accept_unix(listener),
            Input::Tcp(listener) => accept_tcp(listener),
            _ => return,
        };
        if let Ok((reader, writer)) = accepted {
            // Nobody listens any more, so the name goes too.
            drop(self.socket_file());
            self.output.set(Some(writer));
            self.input = Input::Client(reader);
        }
    }

    /// A connection that somebody else accepted.
    ///
    /// # Errors
    /// When the host refuses a second handle to it.
    pub fn connected(socket: UnixStream) -> std::io::Result<Self> {
        let (reader, writer) = unix_ends(socket)?;
        let output = Output(Arc::new(Mutex::new(None)));
        output.set(Some(writer));
        Ok(Self { output, input: Input::Client(reader) })
    }

    /// The file of the socket that this stream listens on: to be kept as long as somebody may connect.
    pub fn socket_file(&self) -> Option<SocketFile> {
        match &self.input {
            Input::Unix(_, path) => Some(SocketFile(path.clone())),
            _ => None,
        }
    }

    /// The sending end.
    pub fn output(&self) -> Output {
        self.output.clone()
    }

    /// Hands the input to `user`, on a thread of its own.
    ///
    /// # Errors
    /// When the host refuses another thread.
    pub fn start(self, mut user: impl StreamUser) -> std::io::Result<()> {
        let Self { output, input } = self;
        if matches!(input, Input::None) {
            return Ok(());
        }
        // Not joined: a thread that waits in a read ends with the process.
        spawn_guarded(
            "vm-stream",
            move || match input {
                Input::None => {}
                Input::Stdin => pump(&mut std::io::stdin(), &mut user),
                Input::Client(mut reader) => {
                    pump(&mut reader, &mut user);
                    output.set(None);
                }
                Input::Unix(listener, _) => serve(&output, &mut user, || accept_unix(&listener)),
                Input::Tcp(listener) => serve(&output, &mut user, || accept_tcp(&listener)),
            },
            |_| {},
        )
        .map(drop)
    }
}

/// The file of a socket that we listen on; removed when this is dropped.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok(); // It may be gone already.
    }
}

type Ends = (Box<dyn Read + Send>, Box<dyn Write + Send>);

fn accept_unix(listener: &UnixListener) -> std::io::Result<Ends> {
    unix_ends(listener.accept()?.0)
}

fn accept_tcp(listener: &TcpListener) -> std::io::Result<Ends> {
    tcp_ends(listener.accept()?.0)
}

fn unix_ends(socket: UnixStream) -> std::io::Result<Ends> {
    socket.set_write_timeout(Some(CLIENT_PATIENCE))?;
    Ok((Box::new(socket.try_clone()?), Box::new(HangingUp(socket))))
}

fn tcp_ends(socket: TcpStream) -> std::io::Result<Ends> {
    socket.set_nodelay(true).ok(); // Only a matter of speed.
    socket.set_write_timeout(Some(CLIENT_PATIENCE))?;
    Ok((Box::new(socket.try_clone()?), Box::new(HangingUp(socket))))
}

/// The writing end of a socket: when it is dropped, because a write failed, the reading end learns of it too.
struct HangingUp<S: Shutdown>(S);

trait Shutdown: Write {
    fn hang_up(&self);
}

impl Shutdown for UnixStream {
    fn hang_up(&self) {
        self.shutdown(std::net::Shutdown::Both).ok(); // The other side may have been quicker.
    }
}

impl Shutdown for TcpStream {
    fn hang_up(&self) {
        self.shutdown(std::net::Shutdown::Both).ok(); // The other side may have been quicker.
    }
}

impl<S: Shutdown> Write for HangingUp<S> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl<S: Shutdown> Drop for HangingUp<S> {
    fn drop(&mut self) {
        self.0.hang_up();
    }
}

fn serve(output: &Output, user: &mut impl StreamUser, accept: impl Fn() -> std::io::Result<Ends>) {
    loop {
        match accept() {
            Ok((mut reader, writer)) => {
                output.set(Some(writer));
                pump(&mut reader, user);
                output.set(None);
            }
            // Out of file descriptors, or a client that left at once: try again, but not in a tight loop.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn pump(reader: &mut dyn Read, user: &mut impl StreamUser) {
    user.connected();
    let mut buffer = [0; 4096];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(len) => {
                let mut rest = &buffer[..len];
                while !rest.is_empty() {
                    rest = &rest[user.input(rest).min(rest.len())..];
                    if !rest.is_empty() {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    user.disconnected();
}

/// A socket file that nobody listens on is left over from a process that died.
fn remove_stale_socket(path: &Path) {
    if UnixStream::connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
        std::fs::remove_file(path).ok(); // If it stays, binding says why.
    }
}

fn plain(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::NotFound => "it is not there".to_owned(),
        ErrorKind::PermissionDenied => "you have no permission".to_owned(),
        ErrorKind::AddrInUse => "somebody already uses it".to_owned(),
        ErrorKind::ConnectionRefused => "nobody listens there".to_owned(),
        _ => error.to_string(),
    }
}

/// The terminal without lines and echo, so that each key goes to the guest (or the monitor, which echoes itself) at once;
/// dropping it brings the old mode back.
pub struct RawTerminal(Option<rustix::termios::Termios>);

/// What Ctrl-C does in a [`RawTerminal`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InterruptKey {
    /// It ends the program, as elsewhere.
    EndsProgram,
    /// It goes to the guest like every other key.
    IsSent,
}

impl RawTerminal {
    /// Switches standard input to raw mode where it is a terminal.
    pub fn enter(interrupt: InterruptKey) -> Self {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Self(None);
        }
        let Ok(before) = rustix::termios::tcgetattr(&stdin) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        if interrupt == InterruptKey::EndsProgram {
            raw.local_modes |= rustix::termios::LocalModes::ISIG;
        }
        // Lines that we print ourselves keep their carriage return.
        raw.output_modes |= rustix::termios::OutputModes::OPOST | rustix::termios::OutputModes::ONLCR;
        let entered = rustix::termios::tcsetattr(&stdin, rustix::termios::OptionalActions::Now, &raw);
        Self(entered.is_ok().then_some(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            rustix::termios::tcsetattr(std::io::stdin(), rustix::termios::OptionalActions::Now, before).ok(); // Nothing to be done.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Echo(Output, mpsc::Sender<Vec<u8>>);

    impl StreamUser for Echo {
        fn input(&mut self, bytes: &[u8]) -> usize {
            self.0.send(bytes);
            self.1.send(bytes.to_vec()).unwrap();
            bytes.len()
        }
    }

    #[test]
    fn a_unix_socket_serves_one_client_after_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("port.sock");
        let stream = Stream::open(&StreamTarget::Unix { path: path.clone(), role: SocketRole::Listen }).unwrap();
        let (sender, receiver) = mpsc::channel();
        let user = Echo(stream.output(), sender);
        stream.start(user).unwrap();
        for round in [b"one".as_slice(), b"two"] {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(round).unwrap();
            let mut back = vec![0; round.len()];
            client.read_exact(&mut back).unwrap();
            assert_eq!(back, round);
            assert_eq!(receiver.recv().unwrap(), round);
        }
    }

    #[test]
    fn a_client_that_does_not_read_is_let_go_and_the_next_one_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("port.sock");
        let stream = Stream::open(&StreamTarget::Unix { path: path.clone(), role: SocketRole::Listen }).unwrap();
        let file = stream.socket_file();
        let (output, (sender, receiver)) = (stream.output(), mpsc::channel());
        stream.start(Echo(output.clone(), sender)).unwrap();
        let mut deaf = UnixStream::connect(&path).unwrap();
        deaf.write_all(b"hello").unwrap();
        receiver.recv().unwrap();
        output.send(&vec![0; 16 << 20]); // More than any socket's buffer, so it returns only because of the limit.
        let mut next = UnixStream::connect(&path).unwrap();
        next.write_all(b"next").unwrap();
        assert_eq!(receiver.recv().unwrap(), b"next");
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn an_impossible_file_is_a_sentence_with_advice() {
        let error = Stream::open(&StreamTarget::File("/nonexistent/folder/log".into())).err().unwrap();
        assert!(error.to_string().contains("Choose another place"), "{error}");
    }
}
