//! Packs come whole and true, or not at all, whatever the other side does.

mod bucket;
mod passing_on;
mod peers;
mod serving;
mod support;
