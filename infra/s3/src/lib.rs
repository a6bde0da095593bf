//! One bucket of an S3 service, and an S3 server to embed where there is none.
//!
//! - [`Bucket`] wraps the AWS SDK: the few operations that Longshore needs, bounded, with errors that say what to do.
//! - [`embedded::Server`] serves buckets from a directory over the same protocol, and answers only once an object is
//!   durable. `longshore up` runs on it; so do tests and benchmarks.
//!
//! This crate knows keys and bytes. What the keys mean is the artifact format's business.

mod bucket;
pub mod embedded;
mod error;
mod presign;

pub use bucket::{Bucket, BucketConfig, Download, Encryption, Object, Pages};
pub use error::Error;
pub use longshore_s3_answers::Complaint;
pub use presign::Presigned;
