//! Avro's binary encoding, the part that records need; source: the Avro 1.12 specification.

pub const NOTHING: u8 = 0; // an empty string, array or map, a null, a zero, false
pub const PRESENT: u8 = 2; // the second branch of ["null", …]

const LONGEST: usize = 10; // bytes of a varint of 64 bits

/// A zigzag varint of a signed 64-bit integer.
#[inline]
pub fn long(out: &mut Vec<u8>, n: i64) {
    let rest = ((n << 1) ^ (n >> 63)) as u64;
    if rest < 0x80 {
        out.push(rest as u8);
    } else {
        long_varint(out, rest);
    }
}

/// All bytes that there could be, and then as many as there are: no step waits for the one before.
fn long_varint(out: &mut Vec<u8>, n: u64) {
    let size = (70 - n.leading_zeros() as usize) / 7;
    let mut encoded = [0u8; LONGEST];
    for (at, byte) in encoded.iter_mut().enumerate() {
        *byte = (n >> (7 * at)) as u8 | 0x80;
    }
    if let Some(last) = encoded.get_mut(size - 1) {
        *last &= 0x7F;
    }
    out.extend_from_slice(&encoded);
    out.truncate(out.len() - (LONGEST - size));
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
