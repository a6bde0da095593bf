//! Keys as bytes, so that the order of the bytes is the order of the keys.

use longshore_schemas::{
    ArtifactId, ArtifactName, ClaimId, JobId, NodeId, QueueName, RegionName, RequestId, ServiceName, Timestamp,
    WorkerId,
};

/// A table's key. Encodings are self-delimiting and keep the order, also inside tuples.
pub trait Key: Sized {
    fn write(&self, out: &mut Vec<u8>);

    /// Reads from the front of `bytes`. None: these bytes are not such a key.
    fn read(bytes: &mut &[u8]) -> Option<Self>;

    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        self.write(&mut out);
        out
    }

    fn from_bytes(mut bytes: &[u8]) -> Option<Self> {
        let key = Self::read(&mut bytes)?;
        bytes.is_empty().then_some(key)
    }
}

macro_rules! integers {
    ($($type:ty),+) => {
        $(impl Key for $type {
            fn write(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_be_bytes());
            }

            fn read(bytes: &mut &[u8]) -> Option<Self> {
                let (head, tail) = bytes.split_first_chunk()?;
                *bytes = tail;
                Some(Self::from_be_bytes(*head))
            }
        })+
    };
}
integers!(u8, u32, u64);

/// The sign bit is flipped, so that negative times sort first.
impl Key for Timestamp {
    fn write(&self, out: &mut Vec<u8>) {
        ((self.millis() as u64) ^ (1 << 63)).write(out);
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self::from_millis((u64::read(bytes)? ^ (1 << 63)) as i64))
    }
}

/// Text up to a zero byte; no identifier holds one, so a prefix sorts before what it begins.
fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

fn read_text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    let end = bytes.iter().position(|b| *b == 0)?;
    let (head, tail) = bytes.split_at(end);
    *bytes = &tail[1..];
    std::str::from_utf8(head).ok()
}

macro_rules! texts {
    ($($type:ty),+) => {
        $(impl Key for $type {
            fn write(&self, out: &mut Vec<u8>) {
                write_text(self.as_str(), out);
            }

            fn read(bytes: &mut &[u8]) -> Option<Self> {
                read_text(bytes)?.parse().ok()
            }
        })+
    };
}
texts!(QueueName, ArtifactName, ServiceName, RegionName, NodeId, WorkerId, RequestId, ClaimId);

/// For senders of reports, whose names have no rule but to hold no zero byte.
impl Key for String {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend(self.bytes().filter(|b| *b != 0));
        out.push(0);
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        read_text(bytes).map(str::to_owned)
    }
}

impl Key for ArtifactId {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        let (head, tail) = bytes.split_first_chunk()?;
        *bytes = tail;
        Some(Self::from_bytes(*head))
    }
}

/// Queue, then number: a queue's jobs are neighbours, oldest first.
impl Key for JobId {
    fn write(&self, out: &mut Vec<u8>) {
        self.queue.write(out);
        self.number.write(out);
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self { queue: QueueName::read(bytes)?, number: u64::read(bytes)? })
    }
}

impl Key for () {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut &[u8]) -> Option<Self> {
        Some(())
    }
}

macro_rules! tuples {
    ($($name:ident)+) => {
        impl<$($name: Key),+> Key for ($($name,)+) {
            fn write(&self, out: &mut Vec<u8>) {
                #[allow(non_snake_case)]
                let ($($name,)+) = self;
                $($name.write(out);)+
            }

            fn read(bytes: &mut &[u8]) -> Option<Self> {
                Some(($($name::read(bytes)?,)+))
            }
        }
    };
}
tuples!(A B);
tuples!(A B C);
tuples!(A B C D);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_order_is_key_order() {
        let name = |text: &str| text.parse::<QueueName>().expect("valid");
        let keys = [(name("a"), 1u64), (name("a"), 256), (name("a-b"), 0), (name("ab"), 0), (name("b"), 0)];
        let bytes: Vec<_> = keys.iter().map(Key::to_bytes).collect();
        assert!(bytes.is_sorted());
        for (key, bytes) in keys.iter().zip(&bytes) {
            assert_eq!(<(QueueName, u64)>::from_bytes(bytes).as_ref(), Some(key));
        }
        let times = [-5, -1, 0, 1, 1_000_000].map(|t| Timestamp::from_millis(t).to_bytes());
        assert!(times.is_sorted());
    }

    #[test]
    fn bytes_that_are_no_key_are_none() {
        assert_eq!(u64::from_bytes(b"short"), None);
        assert_eq!(QueueName::from_bytes(b"no end"), None);
        assert_eq!(QueueName::from_bytes(b"../x\0"), None);
        assert_eq!(u8::from_bytes(b"xy"), None, "trailing bytes");
    }
}
