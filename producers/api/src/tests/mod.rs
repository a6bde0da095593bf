//! The whole API over a real log and a real bucket; only the projections are stood in for, by a toy that decides requests as
//! it is asked about them.

mod asking;
mod bad_input;
mod files;
mod imports;
mod looking_after;
mod nodes;
mod registry;
mod roles;
mod serving;
mod toy;
mod watching;
mod working;
mod world;
