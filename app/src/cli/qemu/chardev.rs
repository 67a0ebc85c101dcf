//! Where a serial port, monitor or debug port leads, as QEMU writes it: `stdio`, `file:PATH`, `unix:PATH,server=on,wait=off`,
//! `tcp:HOST:PORT,server`, `chardev:ID`, `mon:stdio`, `null`, `none`.

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
    /// The terminal, shared with the monitor: Ctrl-A switches.
    SharedTerminal,
}

/// Parses a lead; `chardevs` are those defined by `-chardev`.
pub fn lead(option: &str, text: &str, chardevs: &BTreeMap<String, StreamTarget>) -> Result<Lead> {
    let target = match text.split_once(':') {
        None => match text {
            "none" => return Ok(Lead::Absent),
            "null" | "vc" => StreamTarget::Null,
            "stdio" => StreamTarget::Stdio,
            _ => bail!("{option} {text}: it may lead to stdio, file:, unix:, tcp:, chardev:, mon:stdio, null or none."),
        },
        Some(("mon", "stdio")) => return Ok(Lead::SharedTerminal),
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
            Some(target) => target.clone(),
            None => bail!("{option} {text}: there is no -chardev with id={id}."),
        },
        _ => bail!("{option} {text}: it may lead to stdio, file:, unix:, tcp:, chardev:, mon:stdio, null or none."),
    };
    Ok(Lead::Stream(target))
}

/// Parses a `-chardev` argument.
pub fn chardev(text: &str) -> Result<(String, StreamTarget)> {
    let mut values = KeyValues::parse("-chardev", text, "backend")?;
    let (backend, id) = (values.need("backend")?, values.need("id")?);
    let target = match backend.as_str() {
        "null" => StreamTarget::Null,
        "stdio" => {
            values.take_switch("signal")?;
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
    values.finish(&["path", "server", "wait", "host", "port"])?;
    Ok((id, target))
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
        let (id, target) = chardev("socket,id=c0,path=/tmp/m,server=on,wait=off").unwrap();
        let known = BTreeMap::from([(id, target)]);
        assert_eq!(lead("-serial", "chardev:c0", &known).unwrap(), wanted);
        assert!(lead("-serial", "chardev:c1", &known).is_err());
    }
}
