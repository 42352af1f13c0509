//! Unsigned numbers, seven bits a byte and the lowest first: protobuf's, ClickHouse's, and under a zigzag Avro's.

pub const LONGEST: usize = 10; // bytes, of 64 bits

#[inline]
pub fn put(out: &mut Vec<u8>, n: u64) {
    if n < 0x80 {
        out.push(n as u8);
    } else {
        put_long(out, n);
    }
}

/// All bytes that there could be, and then as many as there are: no step waits for the one before.
fn put_long(out: &mut Vec<u8>, n: u64) {
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

/// A length, and the bytes.
#[inline]
pub fn blob(out: &mut Vec<u8>, data: &[u8]) {
    put(out, data.len() as u64);
    out.extend_from_slice(data);
}
