//! A region between a real log, real buckets and nodes that speak its protocol.

mod ahead;
mod collection;
mod copier;
mod damage;
mod faults;
mod identity;
mod nodes;
mod queries;
mod support;
