//! QMP: one JSON object a line in, answers and events out. A command is a row of [`COMMANDS`].
//! See: QEMU `docs/interop/qmp-spec.rst` (greeting, negotiation, errors, events).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, bounded, select};
use engine_base::{reply, spawn_guarded};
use engine_input::{Button, InputEvent, KeyboardLeds};
use engine_session::{Command, EndReason, Event, Force, Output, PauseReason, ResetBy, RunState, Session, StreamUser};
use serde_json::{Value, json};

use crate::monitor::{self, Commands};
use crate::screendump;

/// More than this without a complete command is an attack or a mistake.
const MOST_LINE: usize = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

struct Failure {
    class: &'static str,
    text: String,
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self { class: "GenericError", text }
    }
}

impl From<&str> for Failure {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

type Answer = Result<Value, Failure>;

const COMMANDS: &[(&str, fn(&mut QmpServer, &Value) -> Answer)] = &[
    ("qmp_capabilities", |_, _| {
        Err(Failure { class: "CommandNotFound", text: "Capabilities negotiation is already complete, command ignored".into() })
    }),
    ("query-status", |server, _| Ok(server.status())),
    ("query-commands", |_, _| Ok(COMMANDS.iter().map(|(name, _)| json!({ "name": name })).collect())),
    ("query-version", |_, _| Ok(version())),
    ("query-name", |server, _| Ok(json!({ "name": server.name }))),
    ("query-cpus-fast", QmpServer::query_cpus),
    ("query-kvm", |server, _| {
        Ok(json!({ "enabled": server.session.backend() == "kvm", "present": std::path::Path::new("/dev/kvm").exists() }))
    }),
    ("query-block", QmpServer::query_block),
    ("human-monitor-command", QmpServer::human_monitor_command),
    ("send-key", QmpServer::send_key),
    ("input-send-event", QmpServer::input_send_event),
    ("screendump", QmpServer::screendump),
    ("stop", |server, _| server.tell(Command::Pause)),
    ("cont", QmpServer::resume),
    // With -no-reboot it ends the process.
    ("system_reset", |server, _| server.after_reply(Command::Reset)),
    ("system_powerdown", |server, _| server.tell(Command::PowerButton)),
    ("quit", |server, _| server.after_reply(Command::Quit)),
    ("eject", QmpServer::eject),
    ("blockdev-change-medium", QmpServer::change_medium),
    ("x-query-jit", |server, _| {
        let text = server.commands.run("info jit");
        Ok(json!({ "human-readable-text": text }))
    }),
    // Ours: the lamps of the guest's keyboard, which QEMU tells VNC clients only.
    ("x-bellglass-query-keyboard-leds", |server, _| Ok(lamps(server.session.keyboard_leds()))),
    // Ours: text as keystrokes of a US keyboard. The prefix is the protocol's for what is not QEMU's.
    ("x-bellglass-type", QmpServer::type_text),
];

/// QMP on one stream.
pub struct QmpServer {
    session: Session,
    name: String,
    output: Output,
    buffer: Vec<u8>,
    negotiated: Arc<AtomicBool>,
    commands: Commands,
    /// What may end the process must not overtake its own answer.
    after_reply: Option<Command>,
    events: Option<JoinHandle<()>>,
    /// Dropped with the server: the thread of events then ends too.
    _alive: Sender<()>,
}

impl QmpServer {
    /// A server for the machine called `name`, which answers to `output`; events flow from now on, to clients that have negotiated.
    pub fn new(session: Session, name: impl Into<String>, output: Output) -> Self {
        let negotiated = Arc::new(AtomicBool::new(false));
        let (alive, dropped) = bounded(0);
        let (events, speaks, to) = (session.events(), Arc::clone(&negotiated), output.clone());
        let running = matches!(session.state(), RunState::Running | RunState::ShuttingDown);
        let tell = move || tell_events(&events, &dropped, running, &speaks, &to);
        // Ends with the session. Without the thread (the host refused it) the client misses events but is answered.
        let events = spawn_guarded("vm-qmp-events", tell, |_| {})
            .inspect_err(|error| tracing::warn!(%error, "QMP events cannot be sent"))
            .ok();
        let commands = Commands::new(session.clone());
        let name = name.into();
        Self { session, name, output, buffer: Vec::new(), negotiated, commands, after_reply: None, events, _alive: alive }
    }

    /// The thread that sends events: it ends after the machine's last one, so joining it then makes sure that the client
    /// was told before the process goes.
    pub fn take_event_thread(&mut self) -> Option<JoinHandle<()>> {
        self.events.take()
    }

    /// Tells the machine, and waits until it has done so: the next question sees the result.
    fn tell(&mut self, command: Command) -> Answer {
        self.session.send(command);
        self.ask(|reply| Command::Settle { reply })?;
        Ok(json!({}))
    }

    /// Does so once the client has its answer.
    fn after_reply(&mut self, command: Command) -> Answer {
        self.after_reply = Some(command);
        Ok(json!({}))
    }

    fn resume(&mut self, _: &Value) -> Answer {
        if self.session.state() == RunState::Paused && self.session.pause_reason() == PauseReason::GuestOff {
            return Err("Resetting the Virtual Machine is required".into());
        }
        self.tell(Command::Resume)
    }

    fn query_cpus(&mut self, _: &Value) -> Answer {
        let cpus = self.ask(|reply| Command::DescribeBoard { reply })?.cpus;
        let cpu = |index| json!({ "cpu-index": index, "qom-path": format!("/machine/cpu[{index}]"), "thread-id": 0, "target": "x86_64" });
        Ok((0..cpus).map(cpu).collect())
    }

    fn type_text(&mut self, arguments: &Value) -> Answer {
        let text = text(arguments, "text")?.to_owned();
        let typed = self.ask(|reply| Command::TypeText { text, reply })??;
        Ok(json!({ "typed": typed }))
    }

    fn ask<T>(&self, question: impl FnOnce(engine_base::Reply<T>) -> Command) -> Result<T, Failure> {
        let (answer, asked) = reply();
        self.session.send(question(answer));
        asked.wait_for(PATIENCE).ok_or_else(|| "the machine does not answer".into())
    }

    fn status(&self) -> Value {
        let (status, running) = match (self.session.state(), self.session.pause_reason()) {
            (RunState::Starting, _) | (RunState::Paused, PauseReason::NotStarted) => ("prelaunch", false),
            (RunState::Running | RunState::ShuttingDown, _) => ("running", true),
            (RunState::Paused, PauseReason::Asked) => ("paused", false),
            (RunState::Paused, PauseReason::GuestOff) | (RunState::Ended, _) => ("shutdown", false),
            (RunState::Paused, PauseReason::HostDisk) => ("io-error", false),
            (RunState::Failed, _) => ("internal-error", false),
        };
        json!({ "status": status, "running": running, "singlestep": false })
    }

    fn query_block(&mut self, _: &Value) -> Answer {
        let drives = self.ask(|reply| Command::DescribeBoard { reply })?.drives;
        let describe = |drive: &engine_session::DriveInfo| {
            let removable = drive.kind != engine_session::MachineDriveKind::Disk;
            let mut described =
                json!({ "device": drive.name, "locked": drive.locked, "removable": removable, "type": "unknown" });
            if drive.kind == engine_session::MachineDriveKind::Cdrom {
                described["tray_open"] = drive.tray_open.into();
            }
            if let Some(file) = &drive.medium {
                described["inserted"] = json!({
                    "file": file, "drv": drive.format, "ro": drive.read_only,
                    "image": { "filename": file, "format": drive.format, "virtual-size": drive.len },
                });
            }
            described
        };
        Ok(drives.iter().map(describe).collect())
    }

    fn human_monitor_command(&mut self, arguments: &Value) -> Answer {
        let line = text(arguments, "command-line")?;
        Ok(Value::String(self.commands.run(line).replace('\n', "\r\n")))
    }

    fn send_key(&mut self, arguments: &Value) -> Answer {
        let keys = arguments.get("keys").and_then(Value::as_array).ok_or("Parameter 'keys' is missing")?;
        let keys = keys.iter().map(key).collect::<Result<Vec<_>, _>>()?;
        let hold = arguments.get("hold-time").and_then(Value::as_u64).unwrap_or(100);
        monitor::send_keys(&self.session, &keys, Duration::from_millis(hold));
        Ok(json!({}))
    }

    fn input_send_event(&mut self, arguments: &Value) -> Answer {
        let events = arguments.get("events").and_then(Value::as_array).ok_or("Parameter 'events' is missing")?;
        let (mut moved, mut at) = ((0, 0), (None, None));
        let mut others = Vec::new();
        for event in events {
            let (kind, data) = (text(event, "type")?, event.get("data").ok_or("Parameter 'data' is missing")?);
            let down = || data.get("down").and_then(Value::as_bool).ok_or("Parameter 'down' is missing");
            match kind {
                "key" => others.push(InputEvent::Key { code: key(data.get("key").unwrap_or(&Value::Null))?, pressed: down()? }),
                "btn" => match text(data, "button")? {
                    "wheel-up" if down()? => others.push(InputEvent::Wheel { notches: 1 }),
                    "wheel-down" if down()? => others.push(InputEvent::Wheel { notches: -1 }),
                    "wheel-up" | "wheel-down" => {}
                    name => others.push(InputEvent::Button { button: button(name)?, pressed: down()? }),
                },
                "rel" | "abs" => {
                    let value = data.get("value").and_then(Value::as_i64).ok_or("Parameter 'value' is missing")?;
                    let limited = value.clamp(0, 0x7fff) as u16;
                    match (kind, text(data, "axis")?) {
                        ("rel", "x") => moved.0 += value.clamp(-0x7fff, 0x7fff) as i32,
                        ("rel", "y") => moved.1 += value.clamp(-0x7fff, 0x7fff) as i32,
                        ("abs", "x") => at.0 = Some(limited),
                        ("abs", "y") => at.1 = Some(limited),
                        (_, other) => return Err(format!("Invalid parameter '{other}'").into()),
                    }
                }
                other => return Err(format!("Invalid parameter '{other}'").into()),
            }
        }
        if let (Some(x), Some(y)) = at {
            self.session.send(Command::Input(InputEvent::PointerAt { x, y }));
        }
        if moved != (0, 0) {
            self.session.send(Command::Input(InputEvent::PointerMoved { dx: moved.0, dy: moved.1 }));
        }
        for event in others {
            self.session.send(Command::Input(event));
        }
        Ok(json!({}))
    }

    fn screendump(&mut self, arguments: &Value) -> Answer {
        let file = text(arguments, "filename")?;
        let png = arguments.get("format").and_then(Value::as_str) == Some("png");
        let picture = self.ask(|reply| Command::TakePicture { reply })?;
        screendump::write(&picture, file.as_ref(), png)?;
        Ok(json!({}))
    }

    fn eject(&mut self, arguments: &Value) -> Answer {
        let drive = text(arguments, "device").or_else(|_| text(arguments, "id"))?.to_owned();
        let forced = arguments.get("force").and_then(Value::as_bool).unwrap_or(false);
        let force = if forced { Force::OverrideLock } else { Force::RespectLock };
        self.ask(|reply| Command::EjectMedium { drive, force, reply })??;
        Ok(json!({}))
    }

    fn change_medium(&mut self, arguments: &Value) -> Answer {
        let drive = text(arguments, "device").or_else(|_| text(arguments, "id"))?.to_owned();
        let path = text(arguments, "filename")?.into();
        self.ask(|reply| Command::InsertMedium { drive, path, reply })??;
        Ok(json!({}))
    }

    fn handle(&mut self, request: &Value) {
        let mut response = match self.execute(request) {
            Ok(value) => json!({ "return": value }),
            Err(failure) => json!({ "error": { "class": failure.class, "desc": failure.text } }),
        };
        if let Some(id) = request.get("id") {
            response["id"] = id.clone();
        }
        send(&self.output, &response);
        if let Some(command) = self.after_reply.take() {
            // Nobody answers when that was the end.
            self.tell(command).ok();
        }
    }

    fn execute(&mut self, request: &Value) -> Answer {
        let name = text(request, "execute").map_err(|_| "QMP input lacks member 'execute'")?;
        if !self.negotiated.load(Ordering::Acquire) {
            if name == "qmp_capabilities" {
                self.negotiated.store(true, Ordering::Release);
                return Ok(json!({}));
            }
            let text = "Expecting capabilities negotiation with 'qmp_capabilities'".to_owned();
            return Err(Failure { class: "CommandNotFound", text });
        }
        let Some((_, run)) = COMMANDS.iter().find(|(known, _)| *known == name) else {
            return Err(Failure { class: "CommandNotFound", text: format!("The command {name} has not been found") });
        };
        run(self, request.get("arguments").unwrap_or(&Value::Null))
    }
}

impl StreamUser for QmpServer {
    fn connected(&mut self) {
        self.buffer.clear();
        self.negotiated.store(false, Ordering::Release);
        send(&self.output, &json!({ "QMP": { "version": version(), "capabilities": [] } }));
    }

    fn input(&mut self, bytes: &[u8]) -> usize {
        self.buffer.extend(bytes);
        loop {
            let mut values = serde_json::Deserializer::from_slice(&self.buffer).into_iter::<Value>();
            match values.next() {
                None => {
                    self.buffer.clear();
                    break;
                }
                Some(Ok(request)) => {
                    let used = values.byte_offset();
                    self.buffer.drain(..used);
                    self.handle(&request);
                }
                Some(Err(error)) if error.is_eof() && self.buffer.len() <= MOST_LINE => break,
                Some(Err(_)) => {
                    // What follows on the next line may be sound again.
                    let end = self.buffer.iter().position(|byte| *byte == b'\n').map_or(self.buffer.len(), |at| at + 1);
                    self.buffer.drain(..end);
                    send(&self.output, &json!({ "error": { "class": "GenericError", "desc": "JSON parse error" } }));
                }
            }
        }
        bytes.len()
    }

    fn disconnected(&mut self) {
        self.negotiated.store(false, Ordering::Release);
    }
}

fn send(output: &Output, message: &Value) {
    output.send(format!("{message}\r\n").as_bytes());
}

/// The version of QEMU whose protocol we speak, with our own as the package.
fn version() -> Value {
    json!({ "qemu": { "micro": 0, "minor": 2, "major": 7 }, "package": concat!("Bellglass ", env!("CARGO_PKG_VERSION")) })
}

fn text<'a>(arguments: &'a Value, name: &str) -> Result<&'a str, Failure> {
    arguments.get(name).and_then(Value::as_str).ok_or_else(|| format!("Parameter '{name}' is missing").into())
}

/// `{"type": "qcode", "data": "a"}` or `{"type": "number", "data": 30}`.
fn key(value: &Value) -> Result<engine_input::KeyCode, Failure> {
    match (value.get("type").and_then(Value::as_str), value.get("data")) {
        (Some("qcode"), Some(Value::String(name))) => Ok(monitor::key(name)?),
        (Some("number"), Some(number)) => {
            let scancode = number.as_u64().and_then(|number| u16::try_from(number).ok());
            Ok(scancode.and_then(engine_input::key_by_set1).ok_or("Invalid key number")?)
        }
        _ => Err("Invalid parameter 'keys'".into()),
    }
}

fn button(name: &str) -> Result<Button, Failure> {
    match name {
        "left" => Ok(Button::Left),
        "middle" => Ok(Button::Middle),
        "right" => Ok(Button::Right),
        "side" => Ok(Button::Side),
        "extra" => Ok(Button::Extra),
        other => Err(format!("Invalid parameter '{other}'").into()),
    }
}

/// The thread `vm-qmp-events`.
fn tell_events(events: &Receiver<Event>, dropped: &Receiver<()>, mut running: bool, speaks: &AtomicBool, to: &Output) {
    loop {
        let event = select! {
            recv(events) -> event => event,
            recv(dropped) -> _ => return,
        };
        let Ok(event) = event else { return };
        let was_running = running;
        if let Event::StateChanged(state) = &event {
            running = matches!(state, RunState::Running | RunState::ShuttingDown);
        }
        // Back from “shutting down” (the guest rebooted instead) is no RESUME: time never stood still.
        let is_news = !matches!(event, Event::StateChanged(RunState::Running)) || !was_running;
        if is_news && speaks.load(Ordering::Acquire) {
            event_messages(&event).iter().for_each(|message| send(to, message));
        }
        if matches!(event, Event::Ended(_)) {
            return;
        }
    }
}

fn lamps(leds: KeyboardLeds) -> Value {
    json!({ "caps-lock": leds.caps_lock, "num-lock": leds.num_lock, "scroll-lock": leds.scroll_lock })
}

/// QEMU's `ShutdownCause` of a reset.
fn cause(by: ResetBy) -> Value {
    match by {
        ResetBy::Guest => json!({ "guest": true, "reason": "guest-reset" }),
        ResetBy::Person => json!({ "guest": false, "reason": "host-qmp-system-reset" }),
    }
}

fn event_messages(event: &Event) -> Vec<Value> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let stamp = json!({ "seconds": since.as_secs(), "microseconds": since.subsec_micros() });
    let plain = |name: &str| json!({ "timestamp": stamp, "event": name });
    let with = |name: &str, data: Value| json!({ "timestamp": stamp, "event": name, "data": data });
    match event {
        Event::StateChanged(RunState::Running) => vec![plain("RESUME")],
        Event::StateChanged(RunState::Paused) => vec![plain("STOP")],
        Event::StateChanged(RunState::ShuttingDown) => vec![plain("POWERDOWN")],
        Event::KeyboardLeds(leds) => vec![with("X_BELLGLASS_KEYBOARD_LEDS", lamps(*leds))],
        Event::Reset { by } => vec![with("RESET", cause(*by))],
        Event::GuestShutdown => vec![with("SHUTDOWN", json!({ "guest": true, "reason": "guest-shutdown" }))],
        Event::Ended(reason) => match reason {
            EndReason::Quit => vec![with("SHUTDOWN", json!({ "guest": false, "reason": "host-qmp-quit" }))],
            EndReason::PoweredOff => vec![with("SHUTDOWN", json!({ "guest": false, "reason": "host-ui" }))],
            EndReason::Signal => vec![with("SHUTDOWN", json!({ "guest": false, "reason": "host-signal" }))],
            EndReason::Reset(by) => vec![with("SHUTDOWN", cause(*by))],
            EndReason::Failed => vec![with("SHUTDOWN", json!({ "guest": false, "reason": "host-error" }))],
            // Told when it happened; isa-debug-exit ends QEMU without a word, too.
            EndReason::GuestPoweredOff | EndReason::DebugExit(_) => Vec::new(),
        },
        Event::TrayMoved { drive, open } => {
            vec![with("DEVICE_TRAY_MOVED", json!({ "device": drive, "id": drive, "tray-open": open }))]
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_display::Screen;
    use engine_session::{Stream, StreamTarget, link};

    fn server(folder: &std::path::Path) -> (QmpServer, engine_session::EngineSide, std::path::PathBuf) {
        let (session, engine) = link(Screen::new());
        let file = folder.join("out");
        let output = Stream::open(&StreamTarget::File(file.clone())).unwrap().output();
        (QmpServer::new(session, "test", output), engine, file)
    }

    #[test]
    fn nothing_is_done_before_negotiation() {
        let folder = tempfile::tempdir().unwrap();
        let (mut server, engine, file) = server(folder.path());
        server.connected();
        let machine = std::thread::spawn(move || assert!(matches!(engine.commands().recv(), Ok(Command::Quit))));
        server.input(br#"{"execute": "stop"} {"execute": "qmp_capabilities", "id": 7} {"execute": "qu"#);
        server.input(br#"it"}"#);
        let lines: Vec<Value> =
            std::fs::read_to_string(file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines[0]["QMP"]["version"].is_object());
        assert_eq!(lines[1]["error"]["class"], "CommandNotFound");
        assert_eq!(lines[2], json!({ "return": {}, "id": 7 }));
        assert_eq!(lines[3], json!({ "return": {} }));
        machine.join().unwrap();
    }

    #[test]
    fn garbage_is_answered_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let (mut server, _engine, file) = server(folder.path());
        server.connected();
        server.input(b"}}}}");
        server.input(br#"{"execute": "qmp_capabilities"}"#);
        server.input(b"{\"execute\": nonsense\n{\"execute\": \"query-name\"}\n[1] 5 {}");
        server.input(&[b'['; 200_000]);
        server.input(br#"{"execute": "query-version"}"#);
        let text = std::fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert!(lines[0].contains("JSON parse error") && lines[1].contains("return"), "{text}");
        assert!(lines[2].contains("JSON parse error") && lines[3].contains("test"), "{text}");
        assert!(lines[4..7].iter().all(|line| line.contains("QMP input lacks member 'execute'")), "{text}");
        assert!(text.len() < 4096 && lines.last().unwrap().contains("qemu"), "{text}");
    }

    #[test]
    fn events_reach_a_client_and_end_with_the_machine() {
        let folder = tempfile::tempdir().unwrap();
        let (mut server, engine, file) = server(folder.path());
        server.connected();
        server.input(br#"{"execute": "qmp_capabilities"}"#);
        engine.set_state(RunState::Running);
        engine.set_state(RunState::ShuttingDown);
        engine.set_state(RunState::Running); // It rebooted instead.
        engine.set_state(RunState::Paused);
        engine.set_state(RunState::Ended);
        engine.tell(Event::Ended(EndReason::PoweredOff));
        server.take_event_thread().unwrap().join().unwrap();
        let text = std::fs::read_to_string(file).unwrap();
        let names: Vec<String> = text
            .lines()
            .filter_map(|line| Some(serde_json::from_str::<Value>(line).unwrap()["event"].as_str()?.to_owned()))
            .collect();
        assert_eq!(names, ["RESUME", "POWERDOWN", "STOP", "SHUTDOWN"]);
    }

    #[test]
    fn resets_and_ends_say_who_caused_them() {
        let told = |event| {
            let message = event_messages(&event).pop().unwrap();
            format!("{} {} {}", message["event"].as_str().unwrap(), message["data"]["guest"], message["data"]["reason"])
        };
        assert_eq!(told(Event::Reset { by: ResetBy::Guest }), "RESET true \"guest-reset\"");
        assert_eq!(told(Event::Reset { by: ResetBy::Person }), "RESET false \"host-qmp-system-reset\"");
        assert_eq!(told(Event::GuestShutdown), "SHUTDOWN true \"guest-shutdown\"");
        for (reason, wanted) in [
            (EndReason::Quit, "SHUTDOWN false \"host-qmp-quit\""),
            (EndReason::PoweredOff, "SHUTDOWN false \"host-ui\""),
            (EndReason::Signal, "SHUTDOWN false \"host-signal\""),
            (EndReason::Reset(ResetBy::Guest), "SHUTDOWN true \"guest-reset\""),
            (EndReason::Failed, "SHUTDOWN false \"host-error\""),
        ] {
            assert_eq!(told(Event::Ended(reason)), wanted);
        }
        assert!(event_messages(&Event::Ended(EndReason::GuestPoweredOff)).is_empty(), "it was told when it happened");
    }

    #[test]
    fn a_server_that_is_gone_leaves_no_thread() {
        let folder = tempfile::tempdir().unwrap();
        let (mut server, _engine, _) = server(folder.path());
        let thread = server.take_event_thread().unwrap();
        drop(server);
        thread.join().unwrap();
    }
}
