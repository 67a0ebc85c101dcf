//! The other side of QMP: what `bellglass stop` and the manager say to a machine that another process runs.

use std::io::{BufRead, BufReader, Error, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

/// How long a machine may take to answer. Screenshots of large screens take a moment.
const PATIENCE: Duration = Duration::from_secs(30);
/// No answer of ours is longer.
const MOST_ANSWER: u64 = 16 << 20;

/// A machine could not be talked to.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("The machine does not answer on its control socket ({reason}). It may have ended just now: {}", path.display())]
    Unreachable {
        /// What the host said.
        reason: String,
        /// The socket.
        path: PathBuf,
    },
    /// It answered with a refusal.
    #[error("{0}")]
    Refused(String),
}

/// A connection to one machine.
pub struct QmpClient {
    reader: BufReader<UnixStream>,
    path: PathBuf,
}

impl QmpClient {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// [`ClientError`]: a sentence for people.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::connect_within(path, PATIENCE)
    }

    /// The same, for one who waits no longer than `patience` for each answer.
    ///
    /// # Errors
    /// [`ClientError`]: a sentence for people.
    pub fn connect_within(path: &Path, patience: Duration) -> Result<Self, ClientError> {
        let failed = |error: Error| ClientError::Unreachable { reason: error.to_string(), path: path.to_owned() };
        let socket = UnixStream::connect(path).map_err(failed)?;
        socket.set_read_timeout(Some(patience)).and_then(|()| socket.set_write_timeout(Some(patience))).map_err(failed)?;
        let mut client = Self { reader: BufReader::new(socket), path: path.to_owned() };
        client.message()?;
        client.execute("qmp_capabilities", json!({}))?;
        Ok(client)
    }

    /// Carries out a command; events on the way are passed over.
    ///
    /// # Errors
    /// [`ClientError`]: a sentence for people.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, ClientError> {
        let request = format!("{}\n", json!({ "execute": command, "arguments": arguments }));
        self.reader.get_mut().write_all(request.as_bytes()).map_err(|error| self.unreachable(&error.to_string()))?;
        loop {
            let mut message = self.message()?;
            if let Some(answer) = message.get_mut("return") {
                return Ok(answer.take());
            }
            if let Some(error) = message.get("error") {
                let text = error.get("desc").and_then(Value::as_str).unwrap_or("The machine refused.");
                return Err(ClientError::Refused(text.to_owned()));
            }
        }
    }

    /// Waits until the machine's process has gone, or `limit` has passed; whether it has gone.
    ///
    /// # Errors
    /// When the host refuses the limit.
    pub fn wait_for_end(mut self, limit: Duration) -> Result<bool, ClientError> {
        let until = std::time::Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            self.reader.get_ref().set_read_timeout(Some(left)).map_err(|error| self.unreachable(&error.to_string()))?;
            let mut line = String::new();
            match (&mut self.reader).take_line(&mut line) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(false),
                Err(_) => return Ok(true), // It hung up.
            }
        }
    }

    fn message(&mut self) -> Result<Value, ClientError> {
        let mut line = String::new();
        match (&mut self.reader).take_line(&mut line) {
            Ok(0) => Err(self.unreachable("it hung up")),
            Ok(_) => serde_json::from_str(&line).map_err(|_| self.unreachable("it does not speak QMP")),
            Err(error) => Err(self.unreachable(&error.to_string())),
        }
    }

    fn unreachable(&self, reason: &str) -> ClientError {
        ClientError::Unreachable { reason: reason.to_owned(), path: self.path.clone() }
    }
}

/// Lines of bounded length.
trait TakeLine {
    fn take_line(self, line: &mut String) -> std::io::Result<usize>;
}

impl TakeLine for &mut BufReader<UnixStream> {
    fn take_line(self, line: &mut String) -> std::io::Result<usize> {
        std::io::Read::take(self, MOST_ANSWER).read_line(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_at_the_socket_is_a_sentence() {
        let error = QmpClient::connect(Path::new("/nonexistent/qmp.sock")).err().unwrap();
        assert!(error.to_string().starts_with("The machine does not answer"), "{error}");
    }
}
