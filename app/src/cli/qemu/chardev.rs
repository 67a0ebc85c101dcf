//! Where a serial port, monitor or debug port leads, as QEMU writes it: `stdio`, `file:PATH`, `unix:PATH,server=on,wait=off`,
//! `tcp:HOST:PORT,server`, `chardev:ID`, `null`, `none`; `mon:` in front shares it with a monitor, as `mux=on` does.

use super::key_values::KeyValues;
use anyhow::{Result, bail};
use engine_session::{SocketRole, StreamTarget};
use std::collections::BTreeMap;

/// Where something leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lead {
    /// It does not exist (`none`).
    Absent,
    /// A stream of its own.
    Stream(StreamTarget),
    /// A serial port and a monitor on one stream: Ctrl-A switches.
    Shared(StreamTarget),
    /// A `-chardev` with `mux=on`, as long as it is not known who else uses it.
    Multiplexed {
        /// Its id.
        id: String,
        /// Where it leads.
        target: StreamTarget,
    },
}

impl Lead {
    /// The stream that it leads to.
    pub fn target(&self) -> Option<&StreamTarget> {
        match self {
            Lead::Absent => None,
            Lead::Stream(target) | Lead::Shared(target) | Lead::Multiplexed { target, .. } => Some(target),
        }
    }
}

/// What a `-chardev` defines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chardev {
    /// Its name.
    pub id: String,
    /// Where it leads.
    pub target: StreamTarget,
    /// Whether a serial port and a monitor may share it (`mux=on`).
    pub multiplexed: bool,
    /// Whether Ctrl-C on it ends the program, where it is the terminal.
    pub signal: bool,
}

/// Parses a lead; `chardevs` are those defined by `-chardev`.
pub fn lead(option: &str, text: &str, chardevs: &BTreeMap<String, Chardev>) -> Result<Lead> {
    let target = match text.split_once(':') {
        None => match text {
            "none" => return Ok(Lead::Absent),
            "null" | "vc" => StreamTarget::Null,
            "stdio" => StreamTarget::Stdio,
            _ => bail!("{option} {text}: it may lead to stdio, file:, unix:, tcp:, chardev:, mon:stdio, null or none."),
        },
        Some(("mon", rest)) if option == "-serial" => {
            return match lead(option, rest, chardevs)? {
                Lead::Stream(target) | Lead::Multiplexed { target, .. } => Ok(Lead::Shared(target)),
                Lead::Absent | Lead::Shared(_) => bail!("{option} {text}: there is nothing that a monitor could share."),
            };
        }
        Some(("file", path)) => StreamTarget::File(path.into()),
        Some(("unix", rest)) => {
            let mut values = KeyValues::parse(option, rest, "path")?;
            let path = values.need("path")?.into();
            let role = role(&mut values)?;
            values.finish(&["server", "wait"])?;
            StreamTarget::Unix { path, role }
        }
        Some(("tcp", rest)) => {
            let mut values = KeyValues::parse(option, rest, "address")?;
            let address = tcp_address(&values.need("address")?);
            let role = role(&mut values)?;
            values.take("nodelay");
            values.finish(&["server", "wait"])?;
            StreamTarget::Tcp { address, role }
        }
        Some(("chardev", id)) => match chardevs.get(id) {
            Some(Chardev { target, multiplexed: true, .. }) => {
                return Ok(Lead::Multiplexed { id: id.to_owned(), target: target.clone() });
            }
            Some(Chardev { target, .. }) => target.clone(),
            None => bail!("{option} {text}: there is no -chardev with id={id}."),
        },
        _ => bail!("{option} {text}: it may lead to stdio, file:, unix:, tcp:, chardev:, mon:stdio, null or none."),
    };
    Ok(Lead::Stream(target))
}

/// Parses a `-chardev` argument.
pub fn chardev(text: &str) -> Result<Chardev> {
    let mut values = KeyValues::parse("-chardev", text, "backend")?;
    let (backend, id) = (values.need("backend")?, values.need("id")?);
    let multiplexed = values.take_switch("mux")?.unwrap_or(false);
    let mut signal = !multiplexed;
    let target = match backend.as_str() {
        "null" => StreamTarget::Null,
        "stdio" => {
            signal = values.take_switch("signal")?.unwrap_or(signal);
            StreamTarget::Stdio
        }
        "file" => StreamTarget::File(values.need("path")?.into()),
        "socket" => {
            let path = values.take("path");
            let role = role(&mut values)?;
            match path {
                Some(path) => StreamTarget::Unix { path: path.into(), role },
                None => {
                    let host = values.take("host").unwrap_or_default();
                    StreamTarget::Tcp { address: tcp_address(&format!("{host}:{}", values.need("port")?)), role }
                }
            }
        }
        other => bail!("-chardev {other}: possible are null, stdio, file and socket."),
    };
    values.finish(&["path", "server", "wait", "host", "port", "mux", "signal"])?;
    Ok(Chardev { id, target, multiplexed, signal })
}

fn role(values: &mut KeyValues) -> Result<SocketRole> {
    let (server, wait) = (values.take_switch("server")?.unwrap_or(false), values.take_switch("wait")?.unwrap_or(true));
    Ok(match (server, wait) {
        (false, _) => SocketRole::Connect,
        (true, true) => SocketRole::ListenAndWait,
        (true, false) => SocketRole::Listen,
    })
}

/// Without a host, only this computer may connect.
fn tcp_address(text: &str) -> String {
    match text.strip_prefix(':') {
        Some(port) => format!("127.0.0.1:{port}"),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_take_both_spellings() {
        let none = BTreeMap::new();
        let wanted = Lead::Stream(StreamTarget::Unix { path: "/tmp/m".into(), role: SocketRole::Listen });
        assert_eq!(lead("-monitor", "unix:/tmp/m,server,nowait", &none).unwrap(), wanted);
        assert_eq!(lead("-qmp", "unix:/tmp/m,server=on,wait=off", &none).unwrap(), wanted);
        let known = BTreeMap::from([("c0".to_owned(), chardev("socket,id=c0,path=/tmp/m,server=on,wait=off").unwrap())]);
        assert_eq!(lead("-serial", "chardev:c0", &known).unwrap(), wanted);
        assert!(lead("-serial", "chardev:c1", &known).is_err());
    }
}
