//! The store on a real PostgreSQL: what it answers is what is in the tables, whatever happens to the server.
#![allow(clippy::unwrap_used)]

mod bed;
mod faults;
mod outage;
mod rows;
mod schema;
