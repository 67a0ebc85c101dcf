//! A question carries its own answer slot: `Reply<T>` travels inside a command, `Asked<T>` stays with who asked.
//! A dropped `Reply` is an answer too: the asker gets `None` instead of waiting for ever.

use std::sync::mpsc;
use std::time::Duration;

/// The answering end; consumed by answering.
#[derive(Debug)]
pub struct Reply<T>(mpsc::SyncSender<T>);

/// The asking end.
#[derive(Debug)]
pub struct Asked<T>(mpsc::Receiver<T>);

/// A fresh pair.
pub fn reply<T>() -> (Reply<T>, Asked<T>) {
    let (sender, receiver) = mpsc::sync_channel(1);
    (Reply(sender), Asked(receiver))
}

impl<T> Reply<T> {
    /// Answers. Nobody may be listening any more; that is fine.
    pub fn send(self, answer: T) {
        self.0.send(answer).ok();
    }
}

impl<T> Asked<T> {
    /// Waits for the answer; `None` when the other side went away without one.
    pub fn wait(self) -> Option<T> {
        self.0.recv().ok()
    }

    /// Waits at most `limit`.
    pub fn wait_for(&self, limit: Duration) -> Option<T> {
        self.0.recv_timeout(limit).ok()
    }

    /// The answer, if it is there: for windows, which never wait.
    pub fn poll(&self) -> Option<T> {
        self.0.try_recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_reply_ends_the_wait() {
        let (answer, asked) = reply::<u32>();
        drop(answer);
        assert_eq!(asked.wait(), None);
    }

    #[test]
    fn an_answer_arrives_once() {
        let (answer, asked) = reply();
        answer.send(7);
        assert_eq!(asked.poll(), Some(7));
        assert_eq!(asked.poll(), None);
    }
}
