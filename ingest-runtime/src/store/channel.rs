//! Where rows wait for a writer: bounded in rows and bytes, and closed while the database takes no rows.
//!
//! A row is *waiting*, *taken* or *withdrawn*, decided by one compare-and-swap: what was withdrawn is never
//! handed to the database, so that it can be answered as a refusal; what was taken cannot be withdrawn.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    task::Poll,
};

use futures::task::AtomicWaker;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use super::{Message, Outcome, refusal::Refusal};

/// The most rows of one batch: where measured throughput stops growing.
pub(super) const MAX_BATCH_ROWS: usize = 1_000;
/// The most bytes of one batch, one larger row aside: the memory of a pod is small, and there are four writers.
const MAX_BATCH_BYTES: usize = 4 * 1024 * 1024;
/// What a row costs at least: its share of the structures around it, rounded up.
const UNIT_BYTES: usize = 1024;
/// Rows that wait or are being written, in units: 32 MiB or 32,768 rows, a fifteenth of the pod's memory.
const CAPACITY_UNITS: usize = 32 * 1024;

const WAITING: u8 = 0;
const TAKEN: u8 = 1;
const WITHDRAWN: u8 = 2;

/// What a requester and a writer share about one row.
#[derive(Debug, Default)]
pub(super) struct Ticket {
    state: AtomicU8,
    outcome: OnceLock<Outcome>,
    waker: AtomicWaker,
}

impl Ticket {
    /// Takes the row back; false where a writer has it already.
    pub(super) fn withdraw(&self) -> bool {
        self.leave_waiting(WITHDRAWN) || self.state.load(Ordering::Acquire) == WITHDRAWN
    }

    fn take(&self) -> bool {
        self.leave_waiting(TAKEN)
    }

    fn leave_waiting(&self, to: u8) -> bool {
        self.state
            .compare_exchange(WAITING, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    fn answer(&self, outcome: Outcome) {
        // A row is answered once; whoever would answer it again has nothing new to say.
        let _ = self.outcome.set(outcome);
        self.waker.wake();
    }

    /// The answer, where there is one already.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        self.outcome.get().cloned()
    }

    /// Waits for the answer. One waiter at a time.
    pub(super) async fn wait(&self) -> Outcome {
        poll_fn(|context| {
            self.waker.register(context.waker());
            self.outcome().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }
}

/// A row on its way: with a requester's ticket, and the room that it takes until it is answered.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) message: Message,
    pub(super) deadline: Instant,
    /// Whether it was handed to a connection that broke: it may be stored, whatever happens from now on.
    pub(super) in_doubt: bool,
    enqueued: Instant,
    ticket: Arc<Ticket>,
    _room: OwnedSemaphorePermit,
}

impl Entry {
    /// Tells the requester; where it waits no longer, nobody.
    pub(super) fn answer(self, outcome: Outcome) {
        self.ticket.answer(outcome);
    }
}

/// The channel between requests and writers.
#[derive(Debug)]
pub(super) struct Channel {
    room: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    arrived: Notify,
}

#[derive(Debug)]
struct Waiting {
    rows: VecDeque<Entry>,
    closed: Option<Arc<Refusal>>,
}

/// What a writer took.
#[derive(Debug)]
pub(super) struct Take {
    pub(super) rows: Vec<Entry>,
    /// When the first of them arrived.
    pub(super) oldest: Option<Instant>,
}

impl Channel {
    /// A channel that refuses rows until it is opened.
    pub(super) fn closed(refusal: Refusal) -> Self {
        Self {
            room: Arc::new(Semaphore::new(CAPACITY_UNITS)),
            waiting: Mutex::new(Waiting {
                rows: VecDeque::new(),
                closed: Some(Arc::new(refusal)),
            }),
            arrived: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it holds the lock; the rows are whole in any case.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room, but not past the deadline, and hands a row in.
    pub(super) async fn send(&self, message: Message, deadline: Instant) -> Result<Arc<Ticket>, SendError> {
        if let Some(refusal) = &self.lock().closed {
            return Err(SendError::Closed(refusal.clone()));
        }
        let units = (message.row.fields.len() / UNIT_BYTES + 1).min(CAPACITY_UNITS);
        let room = self.room.clone();
        let acquired = match room.try_acquire_many_owned(u32::try_from(units).unwrap_or(u32::MAX)) {
            Ok(permit) => permit,
            Err(_) => self.wait_for_room(units, deadline).await?,
        };
        let ticket = Arc::new(Ticket::default());
        let entry = Entry {
            message,
            deadline,
            in_doubt: false,
            enqueued: Instant::now(),
            ticket: ticket.clone(),
            _room: acquired,
        };
        let mut waiting = self.lock();
        if let Some(refusal) = &waiting.closed {
            return Err(SendError::Closed(refusal.clone()));
        }
        waiting.rows.push_back(entry);
        drop(waiting);
        self.arrived.notify_one();
        Ok(ticket)
    }

    async fn wait_for_room(
        &self,
        units: usize,
        deadline: Instant,
    ) -> Result<OwnedSemaphorePermit, SendError> {
        let units = u32::try_from(units).unwrap_or(u32::MAX);
        match tokio::time::timeout_at(deadline, self.room.clone().acquire_many_owned(units)).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(SendError::Full),
        }
    }

    /// Waits until a row waits.
    pub(super) async fn arrival(&self) {
        loop {
            let arrived = self.arrived.notified();
            if !self.is_empty() {
                return;
            }
            arrived.await;
        }
    }

    /// Takes what waits, up to a batch. What is past its deadline is left to its requester.
    pub(super) fn take(&self) -> Take {
        let now = Instant::now();
        let mut waiting = self.lock();
        let mut rows = Vec::with_capacity(waiting.rows.len().min(MAX_BATCH_ROWS));
        let (mut bytes, mut oldest) = (0, None);
        while rows.len() < MAX_BATCH_ROWS && bytes < MAX_BATCH_BYTES {
            let Some(entry) = waiting.rows.pop_front() else {
                break;
            };
            if entry.deadline <= now {
                entry.ticket.withdraw();
            } else if entry.ticket.take() {
                bytes += entry.message.row.fields.len();
                oldest.get_or_insert(entry.enqueued);
                rows.push(entry);
            }
        }
        let more = !waiting.rows.is_empty();
        drop(waiting);
        if more {
            // Whoever was notified of the first of them may be this writer.
            self.arrived.notify_one();
        }
        Take { rows, oldest }
    }

    /// Wakes another writer, in place of one that was woken and cannot take rows.
    pub(super) fn pass_on(&self) {
        self.arrived.notify_one();
    }

    /// Opens the channel.
    pub(super) fn open(&self) {
        self.lock().closed = None;
    }

    /// Closes the channel and refuses all that waits.
    pub(super) fn close(&self, refusal: &Refusal) {
        let mut waiting = self.lock();
        waiting.closed = Some(Arc::new(refusal.clone()));
        let refused = std::mem::take(&mut waiting.rows);
        drop(waiting);
        for entry in refused {
            if entry.ticket.take() {
                entry.answer(refusal.outcome());
            }
        }
    }

    /// Whether rows are refused.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().rows.is_empty()
    }

    /// How many rows wait.
    pub(super) fn len(&self) -> usize {
        self.lock().rows.len()
    }
}

/// Why a row was not taken in.
#[derive(Debug)]
pub(super) enum SendError {
    /// The database takes no rows.
    Closed(Arc<Refusal>),
    /// No room came free before the deadline.
    Full,
}
