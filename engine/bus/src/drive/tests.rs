//! What finds no room on the host waits for the person; nothing overtakes it, and nothing hangs on it.

use super::*;
use engine_disk::{DiskError, DiskImage, Extent, Format};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

/// A disk on a host that has no room until it is told otherwise.
struct Cramped {
    room: AtomicBool,
    /// There is room for one operation only.
    only_once: AtomicBool,
    written: Mutex<Vec<u8>>,
}

impl Cramped {
    fn check(&self) -> Result<(), DiskError> {
        let has_room = self.room.load(Ordering::Relaxed);
        if self.only_once.load(Ordering::Relaxed) {
            self.room.store(false, Ordering::Relaxed);
        }
        if has_room { Ok(()) } else { Err(DiskError::NoSpace { path: "/cramped".into() }) }
    }
}

impl DiskImage for Cramped {
    fn len(&self) -> u64 {
        512
    }
    fn read_at(&self, _: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        buffer.fill(0);
        Ok(())
    }
    fn write_at(&self, _: u64, data: &[u8]) -> Result<(), DiskError> {
        self.check()?;
        *self.written.lock().unwrap() = data.to_vec();
        Ok(())
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.check()
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), DiskError> {
        self.check()
    }
    fn write_zeroes(&self, _: u64, _: u64) -> Result<(), DiskError> {
        Ok(())
    }
    fn read_only(&self) -> bool {
        false
    }
    fn format(&self) -> Format {
        Format::Raw
    }
    fn extent_at(&self, _: u64) -> Result<Extent, DiskError> {
        Err(DiskError::NoSpace { path: "/cramped".into() })
    }
}

fn cramped_drive() -> (Drive, Arc<Cramped>, std::thread::JoinHandle<()>, mpsc::Receiver<DriveError>) {
    let image = Arc::new(Cramped { room: AtomicBool::new(false), only_once: AtomicBool::new(false), written: Mutex::default() });
    let (drive, server) = Drive::new("ide0-0");
    drive.set_medium(Some(Medium {
        image: image.clone(),
        read_only: false,
        title: "cramped".into(),
        rules: DriveRules::default(),
    }));
    let (sender, errors) = mpsc::channel();
    drive.on_error(move |_, error, fate| {
        assert_eq!(fate, RequestFate::HeldBack);
        sender.send(error).unwrap();
    });
    let worker = std::thread::spawn(move || server.serve());
    drive.submit(DriveRequest { token: 5, operation: DriveOperation::Write { offset: 0, data: vec![7; 512] } });
    (drive, image, worker, errors)
}

#[test]
fn a_write_without_room_is_held_back_and_tried_again_when_there_is_some() {
    let (drive, image, worker, errors) = cramped_drive();
    assert_eq!(errors.recv().unwrap(), DriveError::NoSpace);
    drive.drain();
    assert_eq!(drive.take_completion(), None, "the guest must not be told of an error");
    drive.retry();
    assert_eq!(errors.recv().unwrap(), DriveError::NoSpace, "there is still no room");
    image.room.store(true, Ordering::Relaxed);
    drive.retry();
    drive.drain();
    assert_eq!(drive.take_completion(), Some(Completion { token: 5, result: Ok(Vec::new()) }));
    assert_eq!(*image.written.lock().unwrap(), [7; 512]);
    drive.close();
    worker.join().unwrap();
}

#[test]
fn flushes_and_discards_are_held_back_too_and_nothing_overtakes_them() {
    let (drive, image, worker, errors) = cramped_drive();
    drive.submit(DriveRequest { token: 6, operation: DriveOperation::Flush });
    drive.submit(DriveRequest { token: 7, operation: DriveOperation::Discard { offset: 0, len: 512 } });
    assert_eq!(errors.recv().unwrap(), DriveError::NoSpace);
    for token in [5, 6, 7] {
        drive.drain();
        assert_eq!(drive.take_completion(), None, "request {token} waits");
        image.room.store(true, Ordering::Relaxed);
        image.only_once.store(true, Ordering::Relaxed);
        drive.retry();
        while drive.take_completion().is_none_or(|done| done != Completion { token, result: Ok(Vec::new()) }) {
            std::thread::yield_now();
        }
        if token < 7 {
            assert_eq!(errors.recv().unwrap(), DriveError::NoSpace);
        }
    }
    drive.close();
    worker.join().unwrap();
}

#[test]
fn what_is_held_back_hinders_neither_a_reset_nor_the_end() {
    let (drive, _image, worker, errors) = cramped_drive();
    errors.recv().unwrap();
    drive.give_up();
    drive.drain();
    assert_eq!(drive.take_completion().unwrap().result, Err(DriveError::NoSpace));
    drive.submit(DriveRequest { token: 6, operation: DriveOperation::Write { offset: 0, data: vec![7; 512] } });
    errors.recv().unwrap();
    drive.close();
    worker.join().unwrap();
}

/// A disk on which everything fails, or waits until two are at it at once.
struct Troubled {
    error: Option<fn() -> DiskError>,
    at_it: Mutex<u32>,
    arrived: Condvar,
}

impl Troubled {
    fn touch(&self) -> Result<(), DiskError> {
        if let Some(error) = self.error {
            return Err(error());
        }
        let mut at_it = self.at_it.lock().unwrap();
        *at_it += 1;
        self.arrived.notify_all();
        let (_at_it, waited) =
            self.arrived.wait_timeout_while(at_it, std::time::Duration::from_secs(20), |at_it| *at_it < 2).unwrap();
        if waited.timed_out() { Err(DiskError::NoSpace { path: "/alone".into() }) } else { Ok(()) }
    }
}

impl DiskImage for Troubled {
    fn len(&self) -> u64 {
        1 << 20
    }
    fn read_at(&self, _: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
        buffer.fill(3);
        self.touch()
    }
    fn write_at(&self, _: u64, _: &[u8]) -> Result<(), DiskError> {
        self.touch()
    }
    fn flush(&self) -> Result<(), DiskError> {
        self.touch()
    }
    fn discard(&self, _: u64, _: u64) -> Result<(), DiskError> {
        self.touch()
    }
    fn write_zeroes(&self, _: u64, _: u64) -> Result<(), DiskError> {
        self.touch()
    }
    fn read_only(&self) -> bool {
        false
    }
    fn format(&self) -> Format {
        Format::Raw
    }
    fn extent_at(&self, _: u64) -> Result<Extent, DiskError> {
        Err(DiskError::NoSpace { path: "/troubled".into() })
    }
}

/// Has two workers carry out `operations` on a troubled disk; what the controller and the machine hear of it.
fn troubled_drive(
    error: Option<fn() -> DiskError>,
    rules: DriveRules,
    operations: Vec<DriveOperation>,
) -> (Vec<Completion>, Vec<(DriveError, RequestFate)>) {
    let image = Arc::new(Troubled { error, at_it: Mutex::new(0), arrived: Condvar::new() });
    let (drive, server) = Drive::new("ide0-0");
    drive.set_medium(Some(Medium { image, read_only: false, title: "troubled".into(), rules }));
    let (sender, reports) = mpsc::channel();
    drive.on_error(move |_, error, fate| sender.send((error, fate)).unwrap());
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let server = server.clone();
            std::thread::spawn(move || server.serve())
        })
        .collect();
    for (token, operation) in operations.into_iter().enumerate() {
        drive.submit(DriveRequest { token: token as u64, operation });
    }
    drive.drain();
    drive.close();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    let mut done: Vec<Completion> = std::iter::from_fn(|| drive.take_completion()).collect();
    done.sort_by_key(|completion| completion.token);
    (done, reports.try_iter().collect())
}

#[test]
fn two_requests_are_under_way_at_once() {
    let apart = vec![DriveOperation::Read { offset: 0, len: 512 }, DriveOperation::Read { offset: 8192, len: 512 }];
    let (done, reports) = troubled_drive(None, DriveRules::default(), apart);
    assert!(done.iter().all(|completion| completion.result == Ok(vec![3; 512])), "{done:?}");
    assert_eq!((done.len(), reports.len()), (2, 0));
}

#[test]
fn merged_reads_and_writes_each_get_their_own_part() {
    /// A disk whose bytes say where they lie.
    struct Numbered(Mutex<Vec<u8>>);
    impl DiskImage for Numbered {
        fn len(&self) -> u64 {
            self.0.lock().unwrap().len() as u64
        }
        fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), DiskError> {
            buffer.copy_from_slice(&self.0.lock().unwrap()[offset as usize..][..buffer.len()]);
            Ok(())
        }
        fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DiskError> {
            self.0.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
            Ok(())
        }
        fn flush(&self) -> Result<(), DiskError> {
            Ok(())
        }
        fn discard(&self, _: u64, _: u64) -> Result<(), DiskError> {
            Ok(())
        }
        fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), DiskError> {
            self.write_at(offset, &vec![0; length as usize])
        }
        fn read_only(&self) -> bool {
            false
        }
        fn format(&self) -> Format {
            Format::Raw
        }
        fn extent_at(&self, _: u64) -> Result<Extent, DiskError> {
            Err(DiskError::NoSpace { path: "/numbered".into() })
        }
    }
    let image = Arc::new(Numbered(Mutex::new((0..4096_u32).map(|at| (at / 512) as u8).collect())));
    let medium = Medium { image, read_only: false, title: "numbered".into(), rules: DriveRules::default() };
    let batch = |operations: Vec<DriveOperation>| {
        let mut queue = Queue::default();
        operations.into_iter().for_each(|operation| queue.push(DriveRequest { token: 0, operation }));
        queue.take().unwrap()
    };
    let writes = [(512, 7), (1024, 8)].map(|(offset, byte)| DriveOperation::Write { offset, data: vec![byte; 512] });
    assert_eq!(medium.carry_out_all(&batch(writes.to_vec())), [Ok(Vec::new()), Ok(Vec::new())]);
    let reads = [(0, 512), (512, 1024), (1536, 512)].map(|(offset, len)| DriveOperation::Read { offset, len });
    let seen = medium.carry_out_all(&batch(reads.to_vec()));
    assert_eq!(seen, [Ok(vec![0; 512]), Ok([[7; 512], [8; 512]].concat()), Ok(vec![3; 512])]);
    // The last of these lies outside the disk, which is no reason to fail the others.
    let reads = [(3072, 512), (3584, 512), (4096, 512)].map(|(offset, len)| DriveOperation::Read { offset, len });
    let seen = medium.carry_out_all(&batch(reads.to_vec()));
    assert_eq!(seen, [Ok(vec![6; 512]), Ok(vec![7; 512]), Err(DriveError::OutOfRange)]);
}

#[test]
fn the_rules_say_what_becomes_of_a_failure() {
    let no_space: fn() -> DiskError = || DiskError::NoSpace { path: "/troubled".into() };
    let fenced: fn() -> DiskError = || DiskError::Fenced { path: "/troubled".into() };
    let read = DriveOperation::Read { offset: 0, len: 4 };
    let write = DriveOperation::Write { offset: 512, data: vec![1; 4] };
    let rules = |on_read_error, on_write_error| DriveRules { on_read_error, on_write_error, ..DriveRules::default() };
    let usual = DriveRules::default();
    let io = Some(Err(DriveError::Io));
    let cases = [
        (fenced, usual, &read, io.clone(), Some((DriveError::Io, RequestFate::Answered))),
        (fenced, usual, &write, io, Some((DriveError::Io, RequestFate::Answered))),
        (no_space, usual, &write, None, Some((DriveError::NoSpace, RequestFate::HeldBack))),
        (fenced, rules(OnError::Report, OnError::Stop), &write, None, Some((DriveError::Io, RequestFate::HeldBack))),
        (fenced, rules(OnError::Stop, OnError::Report), &read, None, Some((DriveError::Io, RequestFate::HeldBack))),
        (fenced, rules(OnError::Ignore, OnError::Report), &read, Some(Ok(vec![0; 4])), None),
        (no_space, rules(OnError::Report, OnError::Ignore), &write, Some(Ok(Vec::new())), None),
        (
            no_space,
            rules(OnError::Report, OnError::Report),
            &write,
            Some(Err(DriveError::NoSpace)),
            Some((DriveError::NoSpace, RequestFate::Answered)),
        ),
    ];
    for (number, (error, rules, operation, answer, report)) in cases.into_iter().enumerate() {
        let (done, reports) = troubled_drive(Some(error), rules, vec![operation.clone()]);
        assert_eq!(done.into_iter().map(|completion| completion.result).next(), answer, "case {number}");
        assert_eq!(reports.first().copied(), report, "case {number}");
    }
}
