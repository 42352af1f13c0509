//! Avro's binary encoding, the part that records need; source: the Avro 1.12 specification.

pub const NOTHING: u8 = 0; // an empty string, array or map, a null, a zero, false
pub const PRESENT: u8 = 2; // the second branch of ["null", …]

/// A zigzag varint of a signed 64-bit integer.
#[inline]
pub fn long(out: &mut Vec<u8>, n: i64) {
    let mut rest = ((n << 1) ^ (n >> 63)) as u64;
    if rest < 0x80 {
        out.push(rest as u8);
        return;
    }
    let mut encoded = [0u8; 10];
    let mut used = 0;
    for byte in &mut encoded {
        used += 1;
        if rest < 0x80 {
            *byte = rest as u8;
            break;
        }
        *byte = rest as u8 | 0x80;
        rest >>= 7;
    }
    out.extend_from_slice(encoded.get(..used).unwrap_or_default());
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
