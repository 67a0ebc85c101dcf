//! `bellglass create|list|run|stop|delete|screenshot|type`: the machines of the library, from a terminal. A machine that
//! runs is another process, so everything said to it goes over its control socket.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use engine_config::{CdDrive, Host, Machine};
use engine_remote::QmpClient;
use engine_session::library::{Library, MachineFolder, NewMachine, Running};
use serde_json::{Value, json};

use super::qemu::size;
use crate::machine_process::{self, Face, Passphrases};

/// What can be done with machines.
#[derive(Subcommand)]
pub enum MachineCommand {
    /// Make a machine.
    Create(Create),
    /// List the machines and what they are doing.
    List {
        /// For programs: an array of objects.
        #[arg(long)]
        json: bool,
    },
    /// Run a machine until it ends.
    Run {
        /// Its name, or its folder.
        machine: String,
        /// Without its window.
        #[arg(long)]
        headless: bool,
        /// Read the passphrases of its encrypted disks from the standard input, a line for each, instead of asking.
        #[arg(long)]
        passphrases_on_stdin: bool,
    },
    /// Ask a running machine to shut down, and wait until it has.
    Stop {
        /// Its name, or its folder.
        machine: String,
        /// Pull the plug instead. Disks are flushed, but the guest is not asked.
        #[arg(long)]
        now: bool,
        /// How long to wait, in seconds.
        #[arg(long, default_value_t = 60)]
        wait: u64,
    },
    /// Move a machine that is off to the trash.
    Delete {
        /// Its name, or its folder.
        machine: String,
    },
    /// Save what a running machine's screen shows.
    Screenshot {
        /// Its name, or its folder.
        machine: String,
        /// The picture to write: .png or .ppm.
        #[arg(default_value = "screenshot.png")]
        file: PathBuf,
    },
    /// Type text, or press keys, on a running machine's keyboard.
    Type {
        /// Its name, or its folder.
        machine: String,
        /// The text, as on a US keyboard; \n is the Enter key.
        #[arg(required_unless_present = "keys")]
        text: Option<String>,
        /// Keys to press together instead, such as ctrl-alt-f1 or ret.
        #[arg(long, conflicts_with = "text")]
        keys: Option<String>,
    },
}

/// What a new machine is made of.
#[derive(Args)]
pub struct Create {
    /// Its name.
    name: String,
    /// The ISO in its CD drive.
    #[arg(long)]
    iso: Option<PathBuf>,
    /// Its hard disk: a size such as 20G, or none.
    #[arg(long, default_value = "20G")]
    disk: String,
    /// Its memory, such as 2G.
    #[arg(long, short, default_value = "1G")]
    memory: String,
    /// Its CPUs.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
}

/// Does it.
pub fn carry_out(command: MachineCommand) -> Result<ExitCode> {
    match command {
        MachineCommand::Create(plan) => create(&Library::of_this_person()?, &plan)?,
        MachineCommand::List { json } => {
            let library = Library::of_this_person()?;
            print!("{}", if json { list_json(&library)? } else { list(&library)? });
        }
        MachineCommand::Run { machine, headless, passphrases_on_stdin } => {
            let face = if headless { Face::Headless } else { Face::Window };
            let passphrases = if passphrases_on_stdin { Passphrases::OnStandardInput } else { Passphrases::Asked };
            return machine_process::run(&machine, face, passphrases);
        }
        MachineCommand::Stop { machine, now, wait } => stop(&machine, now, Duration::from_secs(wait))?,
        MachineCommand::Delete { machine } => {
            let folder = find(&machine)?;
            folder.load().context("Only machines are deleted.")?;
            folder.move_to_trash()?;
            println!("“{}” is in the trash.", folder.folder_name());
        }
        MachineCommand::Screenshot { machine, file } => screenshot(&machine, &file)?,
        MachineCommand::Type { machine, text, keys } => type_on(&machine, text.as_deref(), keys.as_deref())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn find(machine: &str) -> Result<MachineFolder> {
    Ok(Library::of_this_person()?.find(machine)?)
}

fn create(library: &Library, plan: &Create) -> Result<()> {
    let mut machine = Machine::new(&plan.name);
    machine.cpus = plan.cpus;
    machine.memory_mib = size("--memory", &plan.memory, 1 << 20)? >> 20;
    if let Some(iso) = &plan.iso {
        let medium = std::path::absolute(iso)?;
        let options =
            engine_disk::OpenOptions { format: Some(engine_disk::Format::Iso), ..engine_disk::OpenOptions::read_only(&medium) };
        // Half a disc would not start either.
        if let Some(warning) = engine_disk::open(&options)?.warnings().first() {
            bail!("{}: {}", warning.trim_end_matches('.'), medium.display());
        }
        machine.cdroms = vec![CdDrive { medium: Some(medium) }];
    }
    let disk_bytes = match plan.disk.as_str() {
        "none" => None,
        text => Some(size("--disk", text, 1)?.next_multiple_of(512)),
    };
    // Everything that would keep it from starting is said now, not when it starts.
    let problems = engine_config::check(&machine, library.root(), &Host::this_computer());
    if !problems.is_empty() {
        let list: Vec<String> = problems.iter().map(ToString::to_string).collect();
        bail!("{}", list.join("\n"));
    }
    let folder = library.create(NewMachine { machine, disk_bytes })?;
    println!("{}", folder.path().display());
    Ok(())
}

fn list(library: &Library) -> Result<String> {
    let entries = library.list()?;
    if entries.is_empty() {
        return Ok(format!(
            "There are no machines yet. “bellglass create NAME --iso FILE” makes one: {}\n",
            library.root().display()
        ));
    }
    let width = entries.iter().map(|entry| entry.name().chars().count()).max().unwrap_or(0).max(4);
    let mut text = format!("{:width$}  {:8}  {:>4}  {:>9}  folder\n", "name", "state", "CPUs", "memory");
    for entry in entries {
        let state = if entry.running == Running::No { "off" } else { "running" };
        let folder = entry.folder.path().display();
        text += &match &entry.machine {
            Ok(machine) => {
                format!("{:width$}  {state:8}  {:>4}  {:>5} MiB  {folder}\n", machine.name, machine.cpus, machine.memory_mib)
            }
            Err(reason) => format!("{:width$}  damaged: {reason}\n", entry.name()),
        };
    }
    Ok(text)
}

fn list_json(library: &Library) -> Result<String> {
    let describe = |entry: engine_session::library::Entry| {
        let mut described =
            json!({ "name": entry.name(), "folder": entry.folder.path(), "running": entry.running != Running::No });
        match &entry.machine {
            Ok(machine) => {
                described["cpus"] = machine.cpus.into();
                described["memory_mib"] = machine.memory_mib.into();
            }
            Err(reason) => described["damaged"] = reason.as_str().into(),
        }
        if let Running::Yes { pid: Some(pid) } = entry.running {
            described["pid"] = pid.into();
        }
        described
    };
    let all: Vec<Value> = library.list()?.into_iter().map(describe).collect();
    Ok(format!("{:#}\n", Value::Array(all)))
}

/// The control socket of a machine that runs.
fn connect(machine: &str) -> Result<QmpClient> {
    let folder = find(machine)?;
    if folder.running() == Running::No {
        bail!("This machine is not running. “bellglass run” starts it: {}", folder.path().display());
    }
    Ok(QmpClient::connect(&folder.control_socket())?)
}

fn stop(machine: &str, now: bool, limit: Duration) -> Result<()> {
    let mut client = connect(machine)?;
    client.execute(if now { "quit" } else { "system_powerdown" }, json!({}))?;
    if !client.wait_for_end(limit)? {
        bail!(
            "The guest was asked to shut down, but has not done so within {} seconds. Ask again, or pull the plug with “bellglass stop --now”: {machine}",
            limit.as_secs()
        );
    }
    // The socket closes a moment before the lock does; whoever starts the machine again next must find it free.
    let folder = find(machine)?;
    (0..50).any(|_| {
        folder.running() == Running::No || {
            std::thread::sleep(Duration::from_millis(100));
            false
        }
    });
    Ok(())
}

fn screenshot(machine: &str, file: &Path) -> Result<()> {
    // The machine's process has a working folder of its own.
    let file = std::path::absolute(file)?;
    connect(machine)?.execute("screendump", json!({ "filename": file }))?;
    println!("{}", file.display());
    Ok(())
}

fn type_on(machine: &str, text: Option<&str>, keys: Option<&str>) -> Result<()> {
    let mut client = connect(machine)?;
    if let Some(text) = text {
        client.execute("x-bellglass-type", json!({ "text": text.replace("\\n", "\n") }))?;
    }
    if let Some(keys) = keys {
        let keys: Vec<Value> = keys.split('-').map(|key| json!({ "type": "qcode", "data": key })).collect();
        client.execute("send-key", json!({ "keys": keys }))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn library() -> (tempfile::TempDir, Library) {
        let folder = tempfile::tempdir().unwrap();
        let library = Library::at(folder.path().join("machines"), folder.path().join("run"));
        (folder, library)
    }

    fn plan(name: &str) -> Create {
        Create { name: name.into(), iso: None, disk: "1G".into(), memory: "512M".into(), cpus: 2 }
    }

    #[test]
    fn a_created_machine_is_listed() {
        let (_folder, library) = library();
        assert!(list(&library).unwrap().contains("bellglass create"));
        create(&library, &plan("Debian 12")).unwrap();
        let text = list(&library).unwrap();
        assert!(text.contains("Debian 12  off") && text.contains("512 MiB"), "{text}");
        let parsed: Value = serde_json::from_str(&list_json(&library).unwrap()).unwrap();
        assert_eq!((&parsed[0]["cpus"], &parsed[0]["running"]), (&json!(2), &json!(false)));
    }

    #[test]
    fn what_could_never_start_is_refused_before_anything_is_made() {
        let (folder, library) = library();
        let missing = folder.path().join("missing.iso");
        let refused = |change: fn(&mut Create, &Path)| {
            let mut wanted = plan("x");
            change(&mut wanted, &missing);
            create(&library, &wanted).unwrap_err().to_string()
        };
        assert!(refused(|plan, path| plan.iso = Some(path.into())).contains("no such file"));
        assert!(refused(|plan, path| plan.iso = path.parent().map(Into::into)).contains("folder"));
        assert!(refused(|plan, _| plan.memory = "10T".into()).contains("10.0 TiB"));
        assert!(refused(|plan, _| plan.cpus = 1000).contains("1000"));
        assert!(refused(|plan, _| plan.disk = "lots".into()).contains("--disk"));
        assert!(refused(|plan, _| plan.name = "a/b".into()).contains("folder"));
        assert!(library.list().unwrap().is_empty());
    }
}
