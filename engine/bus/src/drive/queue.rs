//! Which requests of a drive wait, which are under way, and which may start next.
//!
//! Requests for different bytes go side by side; those for the same bytes are carried out in the order given, unless both
//! only read. A flush is a bar: it waits for all that came before it, and all that comes after waits for it. Requests of one
//! kind that follow each other both in the queue and on the disk become one access to the image.

use super::{Completion, DriveError, DriveOperation, DriveRequest};
use std::collections::VecDeque;
use std::ops::Range;

/// Requests are merged as long as they have no more bytes than this together.
const MOST_MERGED: u64 = 1 << 20;
/// So many waiting requests are looked at for one that may start.
const LOOK_AHEAD: usize = 64;

/// The requests of one drive.
#[derive(Default)]
pub(super) struct Queue {
    /// In the order given.
    waiting: VecDeque<Waiting>,
    under_way: Vec<UnderWay>,
    /// Rises with every request.
    next_order: u64,
    /// Something waits for the person, and nothing may start.
    stalled: bool,
}

struct Waiting {
    order: u64,
    request: DriveRequest,
    /// Why it is held back, if it is.
    held_back: Option<DriveError>,
}

struct UnderWay {
    order: u64,
    extent: Option<Extent>,
}

/// Requests to be carried out as one.
pub(super) struct Batch {
    /// With their places in the order; never empty.
    pub(super) requests: Vec<(u64, DriveRequest)>,
}

/// The bytes that an operation touches. A flush has none.
#[derive(Clone, PartialEq, Eq)]
struct Extent {
    bytes: Range<u64>,
    changes: bool,
}

impl Extent {
    fn of(operation: &DriveOperation) -> Option<Self> {
        let (offset, length, changes) = match operation {
            DriveOperation::Read { offset, len } => (*offset, *len as u64, false),
            DriveOperation::Write { offset, data } => (*offset, data.len() as u64, true),
            DriveOperation::Discard { offset, len } => (*offset, *len, true),
            DriveOperation::Flush => return None,
        };
        Some(Self { bytes: offset..offset.saturating_add(length), changes })
    }

    fn length(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// Whether the two may not change places.
    fn conflicts_with(&self, other: &Self) -> bool {
        (self.changes || other.changes) && self.bytes.start < other.bytes.end && other.bytes.start < self.bytes.end
    }
}

impl Queue {
    pub(super) fn push(&mut self, request: DriveRequest) {
        let order = self.next_order;
        self.next_order += 1;
        self.waiting.push_back(Waiting { order, request, held_back: None });
    }

    /// Whether nothing waits and nothing is under way.
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.under_way.is_empty()
    }

    /// Whether nothing is under way and nothing can start before the person has done something.
    pub(super) fn is_stuck(&self) -> bool {
        self.stalled && self.under_way.is_empty()
    }

    /// Takes what may start now.
    pub(super) fn take(&mut self) -> Option<Batch> {
        let first = self.startable()?;
        let waiting = self.waiting.remove(first)?;
        let mut merged = Extent::of(&waiting.request.operation);
        let mut requests = vec![(waiting.order, waiting.request)];
        while let Some(more) = self.continues(first, &requests, merged.as_ref())
            && let Some(waiting) = self.waiting.remove(first)
        {
            merged = Some(more);
            requests.push((waiting.order, waiting.request));
        }
        for (order, request) in &requests {
            self.under_way.push(UnderWay { order: *order, extent: Extent::of(&request.operation) });
        }
        Some(Batch { requests })
    }

    /// Whether something may start now.
    pub(super) fn has_startable(&self) -> bool {
        self.startable().is_some()
    }

    fn startable(&self) -> Option<usize> {
        if self.stalled {
            return None;
        }
        let looked_at = self.waiting.iter().take(LOOK_AHEAD);
        // Nothing passes a flush, so the search ends at the first one.
        let bar = looked_at.clone().position(|waiting| waiting.request.operation == DriveOperation::Flush);
        let last = bar.map_or(usize::MAX, |bar| bar + 1);
        looked_at.take(last).enumerate().find(|(index, waiting)| self.may_start(*index, &waiting.request)).map(|(index, _)| index)
    }

    /// Whether the request at `index` need not wait for any before it.
    fn may_start(&self, index: usize, request: &DriveRequest) -> bool {
        match Extent::of(&request.operation) {
            None => index == 0 && self.under_way.is_empty(),
            Some(extent) => {
                let before = self.waiting.iter().take(index).map(|waiting| Extent::of(&waiting.request.operation));
                let under_way = self.under_way.iter().map(|under_way| under_way.extent.clone());
                under_way.chain(before).all(|other| other.is_some_and(|other| !extent.conflicts_with(&other)))
            }
        }
    }

    /// What `requests` touch together with the one that waits at `index`, if that goes on where they end.
    fn continues(&self, index: usize, requests: &[(u64, DriveRequest)], merged: Option<&Extent>) -> Option<Extent> {
        let (merged, next) = (merged?, self.waiting.get(index)?);
        let (_, last) = requests.last()?;
        let same_kind = std::mem::discriminant(&last.operation) == std::mem::discriminant(&next.request.operation);
        let extent = Extent::of(&next.request.operation)?;
        if !same_kind || extent.bytes.start != merged.bytes.end || next.held_back.is_some() {
            return None;
        }
        let both = Extent { bytes: merged.bytes.start..extent.bytes.end, changes: merged.changes };
        // Discards cost nothing by the byte.
        let fits = both.length() <= MOST_MERGED || matches!(last.operation, DriveOperation::Discard { .. });
        (fits && self.may_start(index, &next.request)).then_some(both)
    }

    /// A request is done.
    pub(super) fn finish(&mut self, order: u64) {
        self.under_way.retain(|under_way| under_way.order != order);
    }

    /// A request that was under way waits again, until [`Queue::resume`] or [`Queue::fail_held_back`].
    pub(super) fn hold_back(&mut self, order: u64, request: DriveRequest, error: DriveError) {
        self.finish(order);
        self.stalled = true;
        let place = self.waiting.partition_point(|waiting| waiting.order < order);
        self.waiting.insert(place, Waiting { order, request, held_back: Some(error) });
    }

    /// What was held back may be tried again.
    pub(super) fn resume(&mut self) {
        self.stalled = false;
        self.waiting.iter_mut().for_each(|waiting| waiting.held_back = None);
    }

    /// What was held back fails; the rest goes on.
    pub(super) fn fail_held_back(&mut self) -> Vec<Completion> {
        self.stalled = false;
        let (held_back, rest): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(|waiting| waiting.held_back.is_some());
        self.waiting = rest.into();
        let fail = |waiting: Waiting| Some(Completion { token: waiting.request.token, result: Err(waiting.held_back?) });
        held_back.into_iter().filter_map(fail).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(offset: u64, len: usize) -> DriveOperation {
        DriveOperation::Read { offset, len }
    }

    fn write(offset: u64, len: usize) -> DriveOperation {
        DriveOperation::Write { offset, data: vec![1; len] }
    }

    fn queue_of(operations: Vec<DriveOperation>) -> Queue {
        let mut queue = Queue::default();
        for (token, operation) in operations.into_iter().enumerate() {
            queue.push(DriveRequest { token: token as u64, operation });
        }
        queue
    }

    /// Takes all that may start; the tokens of each batch.
    fn started(queue: &mut Queue) -> Vec<Vec<u64>> {
        std::iter::from_fn(|| queue.take())
            .map(|batch| batch.requests.iter().map(|(_, request)| request.token).collect())
            .collect()
    }

    #[test]
    fn what_touches_different_bytes_goes_side_by_side_and_the_same_bytes_in_order() {
        // Two reads of the same bytes do not wait for each other; a write there waits for both.
        let mut queue = queue_of(vec![read(0, 512), read(0, 512), write(256, 512), read(4096, 512), read(600, 8)]);
        assert_eq!(started(&mut queue), [vec![0], vec![1], vec![3]]);
        queue.finish(0);
        assert_eq!(started(&mut queue), [] as [Vec<u64>; 0]);
        queue.finish(1);
        assert_eq!(started(&mut queue), [vec![2]], "the last one reads what this writes");
        queue.finish(2);
        assert_eq!(started(&mut queue), [vec![4]]);
    }

    #[test]
    fn a_flush_waits_for_all_before_it_and_all_after_wait_for_it() {
        let mut queue = queue_of(vec![write(0, 512), write(8192, 512), DriveOperation::Flush, read(65536, 512)]);
        assert_eq!(started(&mut queue), [vec![0], vec![1]]);
        queue.finish(1);
        assert!(!queue.has_startable());
        queue.finish(0);
        assert_eq!(started(&mut queue), [vec![2]]);
        assert!(!queue.has_startable());
        queue.finish(2);
        assert_eq!(started(&mut queue), [vec![3]]);
        queue.finish(3);
        assert!(queue.is_empty());
    }

    #[test]
    fn neighbours_are_merged_up_to_a_limit_and_never_across_another_request() {
        let mut queue = queue_of(vec![write(0, 512), write(512, 1024), write(1536, 512), write(4096, 512), write(2048, 512)]);
        assert_eq!(started(&mut queue), [vec![0, 1, 2], vec![3], vec![4]]);
        let mut queue = queue_of(vec![read(0, 512), write(512, 512)]);
        assert_eq!(started(&mut queue), [vec![0], vec![1]], "of one kind only");
        let half = (MOST_MERGED / 2) as usize;
        let mut queue = queue_of(vec![read(0, half), read(half as u64, half), read(MOST_MERGED, half)]);
        assert_eq!(started(&mut queue), [vec![0, 1], vec![2]]);
        let discard = |offset| DriveOperation::Discard { offset, len: MOST_MERGED };
        let mut queue = queue_of(vec![discard(0), discard(MOST_MERGED), discard(2 * MOST_MERGED)]);
        assert_eq!(started(&mut queue), [vec![0, 1, 2]]);
    }

    #[test]
    fn what_is_held_back_stops_all_and_comes_first_again() {
        let mut queue = queue_of(vec![write(0, 512), write(8192, 512), write(65536, 512)]);
        let taken: Vec<_> = std::iter::from_fn(|| queue.take()).flat_map(|batch| batch.requests).collect();
        for (order, request) in taken.into_iter().rev().take(2) {
            queue.hold_back(order, request, DriveError::NoSpace);
        }
        assert!(!queue.is_stuck() && !queue.has_startable(), "the first is still under way");
        queue.finish(0);
        assert!(queue.is_stuck());
        queue.resume();
        assert_eq!(started(&mut queue), [vec![1], vec![2]]);
    }

    #[test]
    fn what_is_held_back_can_be_failed() {
        let mut queue = queue_of(vec![write(0, 512), read(8192, 512)]);
        let (order, request) = queue.take().unwrap().requests.remove(0);
        queue.hold_back(order, request, DriveError::Io);
        assert_eq!(queue.fail_held_back(), [Completion { token: 0, result: Err(DriveError::Io) }]);
        assert_eq!(started(&mut queue), [vec![1]]);
    }
}
