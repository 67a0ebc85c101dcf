//! The control socket of a machine: QMP for several clients at once, because the manager watches a machine while
//! `bellglass stop` talks to it. Threads: `vm-control-socket` accepts; each client then has the threads of its [`QmpServer`].

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine_base::spawn_guarded;
use engine_session::{Session, Stream, StreamUser};

use crate::QmpServer;

/// More clients than this at once is a mistake somewhere; they are turned away.
const MOST_CLIENTS: usize = 16;

/// The socket; its file goes when this is dropped.
pub struct ControlSocket(PathBuf);

impl ControlSocket {
    /// Listens at `path` for the machine called `name`. Whatever lies there is taken for the leftover of a process that died:
    /// the caller holds the machine's lock.
    ///
    /// # Errors
    /// When the host refuses the socket or a thread.
    pub fn open(path: &Path, session: &Session, name: &str) -> std::io::Result<Self> {
        std::fs::remove_file(path).ok(); // If it cannot go, binding says why.
        let listener = UnixListener::bind(path)?;
        let (session, name) = (session.clone(), name.to_owned());
        let clients = Arc::new(AtomicUsize::new(0));
        let accept = move || {
            for socket in listener.incoming().flatten() {
                if clients.fetch_add(1, Ordering::Relaxed) >= MOST_CLIENTS {
                    clients.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let counted = Counted(Arc::clone(&clients));
                if let Ok(stream) = Stream::connected(socket) {
                    let server = QmpServer::new(session.clone(), name.clone(), stream.output());
                    let started = stream.start(Client { server, _counted: counted });
                    started.unwrap_or_else(|error| tracing::warn!(%error, "a control client could not be served"));
                }
            }
        };
        // Not joined: it waits for clients until the process ends.
        spawn_guarded("vm-control-socket", accept, |_| {})?;
        Ok(Self(path.to_owned()))
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok(); // It may be gone already.
    }
}

struct Client {
    server: QmpServer,
    _counted: Counted,
}

struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl StreamUser for Client {
    fn connected(&mut self) {
        self.server.connected();
    }

    fn input(&mut self, bytes: &[u8]) -> usize {
        self.server.input(bytes)
    }

    fn disconnected(&mut self) {
        self.server.disconnected();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::QmpClient;
    use engine_display::Screen;
    use engine_session::link;
    use serde_json::json;

    #[test]
    fn two_clients_are_served_at_once_and_too_many_turned_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp.sock");
        let (session, _engine) = link(Screen::new());
        let socket = ControlSocket::open(&path, &session, "Debian 12").unwrap();
        let mut clients: Vec<QmpClient> = (0..MOST_CLIENTS).map(|_| QmpClient::connect(&path).unwrap()).collect();
        for client in &mut clients {
            assert_eq!(client.execute("query-name", json!({})).unwrap(), json!({ "name": "Debian 12" }));
        }
        assert!(QmpClient::connect(&path).is_err());
        drop(clients);
        // The places become free when their threads have noticed.
        let free = (0..200).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            QmpClient::connect(&path).is_ok()
        });
        assert!(free);
        drop(socket);
        assert!(!path.exists());
    }
}
