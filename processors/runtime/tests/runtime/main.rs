//! The runtime with a toy processor: the step by hand, and whole runtimes over a local log.

mod live;
mod machine;
mod snapshots;
mod step;
mod toy;
