//! A region between a real log, real buckets and nodes that speak its protocol.

mod copier;
mod damage;
mod nodes;
mod support;
