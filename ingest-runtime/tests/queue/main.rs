//! What every back end of the queue must do, on a real broker: one suite, and a bed for each broker.
#![allow(clippy::panic, clippy::unwrap_used)]

mod nats;
mod suite;
