//! Avro's binary encoding, the part that records need; source: the Avro 1.12 specification.

use crate::varint;

pub const NOTHING: u8 = 0; // an empty string, array or map, a null, a zero, false
pub const PRESENT: u8 = 2; // the second branch of ["null", …]

/// A zigzag varint of a signed 64-bit integer.
#[inline]
pub fn long(out: &mut Vec<u8>, n: i64) {
    varint::put(out, ((n << 1) ^ (n >> 63)) as u64);
}

/// A length or a count.
#[inline]
pub fn size(out: &mut Vec<u8>, n: usize) {
    long(out, n as i64);
}

/// Bytes, or a string's UTF-8.
#[inline]
pub fn blob(out: &mut Vec<u8>, data: &[u8]) {
    size(out, data.len());
    out.extend_from_slice(data);
}

/// Eight bytes; every NaN is the same one, since JSON knows no other.
#[inline]
pub fn double(out: &mut Vec<u8>, number: f64) {
    let bits = if number.is_nan() { 0x7FF8_0000_0000_0000 } else { number.to_bits() };
    out.extend_from_slice(&bits.to_le_bytes());
}

/// A double, or null.
pub fn optional(out: &mut Vec<u8>, number: Option<f64>) {
    match number {
        Some(number) => {
            out.push(PRESENT);
            double(out, number);
        }
        None => out.push(NOTHING),
    }
}

/// An array whose items `write` appends.
pub fn array<T>(out: &mut Vec<u8>, items: &[T], mut write: impl FnMut(&mut Vec<u8>, &T)) {
    if !items.is_empty() {
        size(out, items.len());
        for item in items {
            write(out, item);
        }
    }
    out.push(NOTHING);
}

fn zigzag(n: u64) -> i64 {
    (n >> 1) as i64 ^ -((n & 1) as i64)
}

/// Avro's binary encoding, read; None where it is not as we write it.
#[derive(Clone, Copy)]
pub struct Reader<'a> {
    pub rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    pub fn take(&mut self, size: usize) -> Option<&'a [u8]> {
        let (data, rest) = self.rest.split_at_checked(size)?;
        self.rest = rest;
        Some(data)
    }

    #[inline]
    pub fn long(&mut self) -> Option<i64> {
        if let Some((&byte, rest)) = self.rest.split_first()
            && byte < 0x80
        {
            self.rest = rest;
            return Some(zigzag(u64::from(byte)));
        }
        self.longer()
    }

    fn longer(&mut self) -> Option<i64> {
        let mut value = 0u64;
        for (n, &byte) in self.rest.iter().take(varint::LONGEST).enumerate() {
            value |= u64::from(byte & 0x7F) << (7 * n);
            if byte < 0x80 {
                if n == varint::LONGEST - 1 && byte > 1 {
                    return None; // more than 64 bits
                }
                self.rest = self.rest.get(n + 1..)?;
                return Some(zigzag(value));
            }
        }
        None
    }

    pub fn int(&mut self) -> Option<i32> {
        i32::try_from(self.long()?).ok()
    }

    #[inline]
    pub fn size(&mut self) -> Option<usize> {
        usize::try_from(self.long()?).ok()
    }

    pub fn double(&mut self) -> Option<f64> {
        let (data, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(f64::from_le_bytes(*data))
    }

    #[inline]
    pub fn blob(&mut self) -> Option<&'a [u8]> {
        let size = self.size()?;
        self.take(size)
    }

    pub fn text(&mut self) -> Option<&'a [u8]> {
        let data = self.blob()?;
        std::str::from_utf8(data).ok()?;
        Some(data)
    }

    /// The branch of ["null", …], of which the second is there.
    pub fn present(&mut self) -> Option<bool> {
        match self.long()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    pub fn optional(&mut self) -> Option<Option<f64>> {
        Some(if self.present()? { Some(self.double()?) } else { None })
    }

    /// As often as an array or map in one block has items. One more look finds its end, which `items` has not read.
    pub fn items(&mut self) -> Option<std::ops::Range<usize>> {
        let count = self.size()?;
        if count > self.rest.len() { None } else { Some(0..count) }
    }

    pub fn end(&mut self, of: &std::ops::Range<usize>) -> Option<()> {
        if of.end > 0 && self.size()? != 0 { None } else { Some(()) }
    }

    pub fn map(&mut self) -> Option<()> {
        let items = self.items()?;
        for _ in items.clone() {
            self.text()?;
            self.text()?;
        }
        self.end(&items)
    }

    pub fn doubles(&mut self) -> Option<Vec<[u8; 8]>> {
        let items = self.items()?;
        let found = items.clone().map(|_| self.double().map(f64::to_be_bytes)).collect::<Option<_>>()?;
        self.end(&items)?;
        Some(found)
    }

    pub fn longs(&mut self) -> Option<Vec<[u8; 8]>> {
        let items = self.items()?;
        let found = items.clone().map(|_| self.long().map(i64::to_be_bytes)).collect::<Option<_>>()?;
        self.end(&items)?;
        Some(found)
    }

    pub fn pass_doubles(&mut self) -> Option<()> {
        let items = self.items()?;
        self.take(items.end.checked_mul(8)?)?;
        self.end(&items)
    }

    pub fn pass_longs(&mut self) -> Option<()> {
        let items = self.items()?;
        for _ in items.clone() {
            self.long()?;
        }
        self.end(&items)
    }
}
