//! Reads Avro's binary encoding straight into a type: the counterpart of [`super::write`].
//!
//! Nothing is allocated for what is only claimed: a text or list is never longer than the bytes that are left.

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use super::DatumError;

/// Reads a value from the beginning of `bytes`; what follows it is left there.
pub(super) fn from_bytes<'de, T: de::Deserialize<'de>>(bytes: &mut &'de [u8]) -> Result<T, DatumError> {
    let mut reader = Reader { left: bytes };
    let value = T::deserialize(&mut reader)?;
    *bytes = reader.left;
    Ok(value)
}

pub(super) struct Reader<'de> {
    pub(super) left: &'de [u8],
}

impl<'de> Reader<'de> {
    pub(super) fn byte(&mut self) -> Result<u8, DatumError> {
        let (byte, left) = self.left.split_first().ok_or_else(cut)?;
        self.left = left;
        Ok(*byte)
    }

    pub(super) fn long(&mut self) -> Result<i64, DatumError> {
        let mut zigzag = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            zigzag |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok((zigzag >> 1).cast_signed() ^ -(zigzag & 1).cast_signed());
            }
        }
        Err(DatumError::new("an integer has more than 10 bytes"))
    }

    /// A number of a type that is narrower.
    fn narrow<N: TryFrom<i64>>(&mut self) -> Result<N, DatumError> {
        let value = self.long()?;
        N::try_from(value).map_err(|_| DatumError::new(format_args!("{value} is out of range")))
    }

    /// The index of a union's branch or an enum's symbol.
    pub(super) fn index(&mut self) -> Result<u32, DatumError> {
        self.narrow()
    }

    pub(super) fn counted(&mut self) -> Result<&'de [u8], DatumError> {
        let length = self.narrow::<usize>()?;
        let (bytes, left) = self.left.split_at_checked(length).ok_or_else(cut)?;
        self.left = left;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<&'de str, DatumError> {
        std::str::from_utf8(self.counted()?).map_err(|_| DatumError::new("a text is not UTF-8"))
    }

    /// How many elements the next block of a list or map has; 0 is its end.
    pub(super) fn block(&mut self) -> Result<u64, DatumError> {
        let count = self.long()?;
        if count < 0 {
            // The block's size in bytes follows, for those who skip it.
            self.long()?;
        }
        Ok(count.unsigned_abs())
    }
}

fn cut() -> DatumError {
    DatumError::new("it ends too early")
}

fn foreign<T>(what: &str) -> Result<T, DatumError> {
    Err(DatumError::new(format_args!("no event has a {what}")))
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = DatumError;

    fn is_human_readable(&self) -> bool {
        false
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DatumError> {
        foreign("value without a type")
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        match self.byte()? {
            0 => visitor.visit_bool(false),
            1 => visitor.visit_bool(true),
            other => Err(DatumError::new(format_args!("{other} is no boolean"))),
        }
    }

    fn deserialize_i8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        visitor.visit_i8(self.narrow()?)
    }

    fn deserialize_i16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        visitor.visit_i16(self.narrow()?)
    }

    fn deserialize_i32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        visitor.visit_i32(self.narrow()?)
    }

    fn deserialize_i64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        visitor.visit_i64(self.long()?)
    }

    fn deserialize_u8<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        visitor.visit_u8(self.narrow()?)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        visitor.visit_u16(self.narrow()?)
    }

    fn deserialize_u32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        visitor.visit_u32(self.narrow()?)
    }

    fn deserialize_u64<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DatumError> {
        foreign("u64 that is not read as crate::avro::long")
    }

    fn deserialize_f32<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DatumError> {
        foreign("f32")
    }

    fn deserialize_f64<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DatumError> {
        foreign("f64")
    }

    fn deserialize_char<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DatumError> {
        foreign("char")
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        visitor.visit_borrowed_str(self.text()?)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        visitor.visit_borrowed_bytes(self.counted()?)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        match self.index()? {
            0 => visitor.visit_none(),
            1 => visitor.visit_some(self),
            branch => Err(DatumError::new(format_args!("an optional value has no branch {branch}"))),
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        visitor.visit_unit()
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, _: V) -> Result<V::Value, DatumError> {
        foreign("unit struct")
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, DatumError> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        let left = self.block()?;
        visitor.visit_seq(Blocks { reader: self, left })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, DatumError> {
        foreign("tuple")
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        _: V,
    ) -> Result<V::Value, DatumError> {
        foreign("tuple struct")
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, DatumError> {
        let left = self.block()?;
        visitor.visit_map(Blocks { reader: self, left })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DatumError> {
        visitor.visit_seq(Fields { reader: self, left: fields.len() })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, DatumError> {
        visitor.visit_enum(self)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DatumError> {
        foreign("name on the wire")
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, DatumError> {
        foreign("value to be skipped")
    }
}

/// A record: its fields in order.
struct Fields<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: usize,
}

impl<'de> SeqAccess<'de> for Fields<'_, 'de> {
    type Error = DatumError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DatumError> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left)
    }
}

/// A list or map: blocks of elements, and an empty one.
struct Blocks<'a, 'de> {
    reader: &'a mut Reader<'de>,
    /// Of the present block. 0: it was the last.
    left: u64,
}

impl Blocks<'_, '_> {
    fn one_less(&mut self) -> Result<(), DatumError> {
        self.left -= 1;
        if self.left == 0 {
            self.left = self.reader.block()?;
        }
        Ok(())
    }

    /// Not more than can be: every element takes a byte.
    fn hint(&self) -> Option<usize> {
        usize::try_from(self.left).ok().map(|left| left.min(self.reader.left.len()))
    }
}

impl<'de> SeqAccess<'de> for Blocks<'_, 'de> {
    type Error = DatumError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, DatumError> {
        if self.left == 0 {
            return Ok(None);
        }
        let value = seed.deserialize(&mut *self.reader)?;
        self.one_less()?;
        Ok(Some(value))
    }

    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

impl<'de> MapAccess<'de> for Blocks<'_, 'de> {
    type Error = DatumError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, DatumError> {
        if self.left == 0 {
            return Ok(None);
        }
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, DatumError> {
        let value = seed.deserialize(&mut *self.reader)?;
        self.one_less()?;
        Ok(value)
    }

    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

/// A union's branch by its index, or an enum's symbol.
impl<'de> EnumAccess<'de> for &mut Reader<'de> {
    type Error = DatumError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), DatumError> {
        let index = self.index()?;
        let variant = seed.deserialize(IntoDeserializer::<DatumError>::into_deserializer(index))?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for &mut Reader<'de> {
    type Error = DatumError;

    fn unit_variant(self) -> Result<(), DatumError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, DatumError> {
        seed.deserialize(self)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, DatumError> {
        foreign("tuple variant")
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], _: V) -> Result<V::Value, DatumError> {
        foreign("struct variant")
    }
}
