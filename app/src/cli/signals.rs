//! SIGINT, SIGTERM and SIGHUP end the machine as pulling its plug would, but with its disks flushed. A second signal does
//! not wait any longer: what the guest had not flushed by then is lost, as in a power cut.
//! Threads: `signals`, until the process ends.

use engine_base::spawn_guarded;
use engine_session::{Command, Session};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Ends the machine behind `session` when this process is asked to end.
///
/// # Errors
/// When the host refuses the handlers or a thread.
pub fn end_on_signals(session: &Session) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let session = session.clone();
    let wait = move || {
        for (count, signal) in signals.forever().enumerate() {
            let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
            if count > 0 {
                eprintln!("bellglass: {name} again: ended at once.");
                std::process::exit(1);
            }
            eprintln!("bellglass: terminating on {name}");
            session.send(Command::EndOnSignal);
        }
    };
    spawn_guarded("signals", wait, |_| {}).map(drop)
}
