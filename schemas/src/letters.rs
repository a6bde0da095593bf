//! The headers of dead letters, and of what is tried again.
//!
//! A dead letter holds what stood on its topic: key and value in its body, the record's headers in its own, with a prefix. So a
//! request can be tried again as it was, with its sender's word on it. Who tries it again says so with a second letter of the same
//! place, and a header that names the first: the mark.

/// Before the name of each header of the record that became a dead letter.
pub const ORIGINAL: &str = "original.";

/// On a mark: the offset of the dead letter that was tried again.
pub const RETRIED: &str = "retried";

/// On a request that was tried again: the offset of its dead letter.
pub const RETRY_OF: &str = "retry-of";

/// Bytes of names and values that are kept of a record's headers. Ours have a tenth of it.
pub const HEADERS_BYTES_MAX: usize = 2_048;
