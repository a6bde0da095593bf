//! Writes Avro's binary encoding straight from a type: what the type's schema says, the type says too, so none is looked at.
//!
//! Numbers are zigzag varints, texts and bytes have their length before them, records are their fields in order, lists and
//! maps one block and an end, unions (`Option`, and enums with data) the branch's index and its value. That this is what
//! apache-avro writes for every message is a property that tests hold ([`super::reference`]).

use std::fmt::{self, Display, Write as _};

use serde::ser::{self, Serialize, Serializer};

use super::DatumError;

/// Appends the value to `out`.
pub(super) fn to_bytes<T: Serialize>(value: &T, out: &mut Vec<u8>) -> Result<(), DatumError> {
    value.serialize(&mut Writer { out })
}

pub(super) struct Writer<'a> {
    pub(super) out: &'a mut Vec<u8>,
}

impl Writer<'_> {
    pub(super) fn long(&mut self, value: i64) {
        let mut zigzag = ((value << 1) ^ (value >> 63)).cast_unsigned();
        while zigzag >= 0x80 {
            self.out.push(zigzag as u8 | 0x80);
            zigzag >>= 7;
        }
        self.out.push(zigzag as u8);
    }

    pub(super) fn length(&mut self, length: usize) -> Result<(), DatumError> {
        self.long(i64::try_from(length).map_err(|_| DatumError::new("a length above 2^63-1"))?);
        Ok(())
    }

    pub(super) fn counted(&mut self, bytes: &[u8]) -> Result<(), DatumError> {
        self.length(bytes.len())?;
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    /// A list's or map's beginning; an empty one is its end alone.
    fn block(&mut self, length: Option<usize>) -> Result<(), DatumError> {
        let length = length.ok_or_else(|| DatumError::new("a list of unknown length"))?;
        if length > 0 { self.length(length) } else { Ok(()) }
    }
}

/// A text that is formatted where it is to stand.
struct Tail<'a>(&'a mut Vec<u8>);

impl fmt::Write for Tail<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

fn foreign<T>(what: &str) -> Result<T, DatumError> {
    Err(DatumError::new(format_args!("no event has a {what}")))
}

impl Serializer for &mut Writer<'_> {
    type Ok = ();
    type Error = DatumError;
    type SerializeSeq = Self;
    type SerializeTuple = ser::Impossible<(), DatumError>;
    type SerializeTupleStruct = ser::Impossible<(), DatumError>;
    type SerializeTupleVariant = ser::Impossible<(), DatumError>;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = ser::Impossible<(), DatumError>;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn serialize_bool(self, value: bool) -> Result<(), DatumError> {
        self.out.push(value.into());
        Ok(())
    }

    fn serialize_i8(self, value: i8) -> Result<(), DatumError> {
        self.serialize_i64(value.into())
    }

    fn serialize_i16(self, value: i16) -> Result<(), DatumError> {
        self.serialize_i64(value.into())
    }

    fn serialize_i32(self, value: i32) -> Result<(), DatumError> {
        self.serialize_i64(value.into())
    }

    fn serialize_i64(self, value: i64) -> Result<(), DatumError> {
        self.long(value);
        Ok(())
    }

    fn serialize_u8(self, value: u8) -> Result<(), DatumError> {
        self.serialize_i64(value.into())
    }

    fn serialize_u16(self, value: u16) -> Result<(), DatumError> {
        self.serialize_i64(value.into())
    }

    fn serialize_u32(self, value: u32) -> Result<(), DatumError> {
        self.serialize_i64(value.into())
    }

    fn serialize_u64(self, _: u64) -> Result<(), DatumError> {
        foreign("u64 that is not written as crate::avro::long")
    }

    fn serialize_f32(self, _: f32) -> Result<(), DatumError> {
        foreign("f32")
    }

    fn serialize_f64(self, _: f64) -> Result<(), DatumError> {
        foreign("f64")
    }

    fn serialize_char(self, _: char) -> Result<(), DatumError> {
        foreign("char")
    }

    fn serialize_str(self, text: &str) -> Result<(), DatumError> {
        self.counted(text.as_bytes())
    }

    fn serialize_bytes(self, bytes: &[u8]) -> Result<(), DatumError> {
        self.counted(bytes)
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<(), DatumError> {
        let start = self.out.len();
        // Most texts are shorter than 64 bytes, whose length takes this one byte.
        self.out.push(0);
        write!(Tail(self.out), "{value}").map_err(|_| DatumError::new("a text that cannot be formatted"))?;
        let length = self.out.len() - start - 1;
        if length < 64 {
            self.out[start] = (length << 1) as u8;
            return Ok(());
        }
        let text = self.out.split_off(start + 1);
        self.out.truncate(start);
        self.counted(&text)
    }

    fn serialize_none(self) -> Result<(), DatumError> {
        self.serialize_i64(0)
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), DatumError> {
        self.long(1);
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<(), DatumError> {
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<(), DatumError> {
        foreign("unit struct")
    }

    fn serialize_unit_variant(self, _: &'static str, index: u32, _: &'static str) -> Result<(), DatumError> {
        self.serialize_u32(index)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), DatumError> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        index: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), DatumError> {
        self.long(index.into());
        value.serialize(self)
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Self, DatumError> {
        self.block(length).map(|()| self)
    }

    fn serialize_tuple(self, _: usize) -> Result<Self::SerializeTuple, DatumError> {
        foreign("tuple")
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self::SerializeTupleStruct, DatumError> {
        foreign("tuple struct")
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, DatumError> {
        foreign("tuple variant")
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Self, DatumError> {
        self.block(length).map(|()| self)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, DatumError> {
        Ok(self)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, DatumError> {
        foreign("struct variant")
    }
}

impl ser::SerializeSeq for &mut Writer<'_> {
    type Ok = ();
    type Error = DatumError;

    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), DatumError> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), DatumError> {
        self.serialize_i64(0)
    }
}

impl ser::SerializeMap for &mut Writer<'_> {
    type Ok = ();
    type Error = DatumError;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), DatumError> {
        key.serialize(&mut **self)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), DatumError> {
        value.serialize(&mut **self)
    }

    fn end(self) -> Result<(), DatumError> {
        self.serialize_i64(0)
    }
}

impl ser::SerializeStruct for &mut Writer<'_> {
    type Ok = ();
    type Error = DatumError;

    fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Result<(), DatumError> {
        value.serialize(&mut **self)
    }

    fn skip_field(&mut self, name: &'static str) -> Result<(), DatumError> {
        Err(DatumError::new(format_args!("the field {name} is left out")))
    }

    fn end(self) -> Result<(), DatumError> {
        Ok(())
    }
}
