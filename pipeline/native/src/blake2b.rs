//! BLAKE2b without a key, of many contents at once that may begin alike; source: RFC 7693.
//!
//! Blocks of several contents are compressed side by side, one in each lane of a vector, and what contents share is
//! compressed once: no crate does both. The compiler makes the vectors, for what the machine is found to have; it does
//! so for plain loops over indices, and not where the rounds or the lanes are written out.
#![expect(clippy::indexing_slicing, clippy::needless_range_loop, reason = "every index is below its array's size")]

use multiversion::multiversion;
use multiversion::target::match_target;

const BLOCK_BYTES: usize = 128;
const UNKEYED: u64 = 0x0101_0000; // fanout and depth 1; the digest's size is added
const IV: [u64; 8] = [
    0x6A09_E667_F3BC_C908,
    0xBB67_AE85_84CA_A73B,
    0x3C6E_F372_FE94_F82B,
    0xA54F_F53A_5F1D_36F1,
    0x510E_527F_ADE6_82D1,
    0x9B05_688C_2B3E_6C1F,
    0x1F83_D9AB_FB41_BD6B,
    0x5BE0_CD19_137E_2179,
];
const SIGMA: [[u8; 16]; 12] = [
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
    [11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4],
    [7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8],
    [9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13],
    [2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9],
    [12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11],
    [13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10],
    [6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5],
    [10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0],
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    [14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3],
];

type Block = [u8; BLOCK_BYTES];
type Lanes<const N: usize> = [u64; N];

/// A hash on its way: of whole blocks.
#[derive(Clone, Copy)]
pub struct State {
    h: [u64; 8],
    absorbed: usize, // bytes
}

impl State {
    /// Of nothing yet.
    pub fn new(digest_bytes: usize) -> Self {
        let mut h = IV;
        h[0] ^= UNKEYED ^ digest_bytes as u64;
        State { h, absorbed: 0 }
    }

    /// Absorb the whole blocks of `content`, which begins with what was absorbed before, and which more will follow.
    pub fn absorb(&mut self, content: &[u8]) {
        let (blocks, _) = content.get(self.absorbed..).unwrap_or_default().as_chunks::<BLOCK_BYTES>();
        for block in blocks {
            self.absorbed += BLOCK_BYTES;
            let mut h = self.h.map(|word| [word]);
            compress(&mut h, &[*block], [self.absorbed as u64], [0]);
            self.h = h.map(|[word]| word);
        }
    }
}

/// The first 16 bytes of the digest of each content; its state has absorbed what it begins with, and not all of it.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl", "x86_64+avx2"))]
pub fn digests(contents: &[(&State, &[u8])]) -> Vec<[u8; 16]> {
    match_target! {
        "x86_64+avx512f+avx512bw+avx512dq+avx512vl" => digests_in::<8>(contents),
        "x86_64+avx2" => digests_in::<4>(contents),
        _ => digests_in::<1>(contents),
    }
}

/// What one lane works on.
#[derive(Clone, Copy)]
struct Work<'c> {
    place: usize, // among the contents
    rest: &'c [u8],
    absorbed: usize,
}

#[inline(always)]
fn digests_in<const N: usize>(contents: &[(&State, &[u8])]) -> Vec<[u8; 16]> {
    let mut digests = vec![[0; 16]; contents.len()];
    let mut waiting = contents.iter().enumerate();
    let mut works: [Option<Work>; N] = [None; N];
    let mut h = [[0; N]; 8];
    loop {
        let (mut blocks, mut absorbed, mut last) = ([[0; BLOCK_BYTES]; N], [0; N], [0; N]);
        let lanes = works.iter_mut().zip(&mut blocks).zip(absorbed.iter_mut().zip(&mut last));
        for (lane, ((slot, block), (absorbed, last))) in lanes.enumerate() {
            if slot.is_none()
                && let Some((place, (state, content))) = waiting.next()
            {
                for i in 0..8 {
                    h[i][lane] = state.h[i];
                }
                let rest = content.get(state.absorbed..).unwrap_or_default();
                *slot = Some(Work { place, rest, absorbed: state.absorbed });
            }
            let Some(work) = slot else { continue };
            match work.rest.split_first_chunk() {
                Some((now, later)) if !later.is_empty() => {
                    *block = *now;
                    work.rest = later;
                    work.absorbed += BLOCK_BYTES;
                }
                _ => {
                    block[..work.rest.len()].copy_from_slice(work.rest);
                    work.absorbed += work.rest.len();
                    work.rest = &[];
                    *last = u64::MAX;
                }
            }
            *absorbed = work.absorbed as u64;
        }
        if works.iter().all(Option::is_none) {
            return digests;
        }
        compress(&mut h, &blocks, absorbed, last);
        for (lane, slot) in works.iter_mut().enumerate() {
            if let Some(Work { place, rest: [], .. }) = slot {
                digests[*place] = (u128::from(h[1][lane]) << 64 | u128::from(h[0][lane])).to_le_bytes();
                *slot = None;
            }
        }
    }
}

/// One block in every lane.
#[inline(always)]
fn compress<const N: usize>(h: &mut [Lanes<N>; 8], blocks: &[Block; N], absorbed: Lanes<N>, last: Lanes<N>) {
    let mut m = [[0; N]; 16];
    for (at, row) in m.iter_mut().enumerate() {
        for (word, block) in row.iter_mut().zip(blocks) {
            *word = u64::from_le_bytes(block.as_chunks().0[at]);
        }
    }
    let mut v = [[0; N]; 16];
    for i in 0..8 {
        v[i] = h[i];
        v[i + 8] = [IV[i]; N];
    }
    v[12] = xor(v[12], absorbed);
    v[14] = xor(v[14], last);
    for words in &SIGMA {
        let m = |at: usize| m[usize::from(words[at] & 15)];
        mix(&mut v, [0, 4, 8, 12], m(0), m(1));
        mix(&mut v, [1, 5, 9, 13], m(2), m(3));
        mix(&mut v, [2, 6, 10, 14], m(4), m(5));
        mix(&mut v, [3, 7, 11, 15], m(6), m(7));
        mix(&mut v, [0, 5, 10, 15], m(8), m(9));
        mix(&mut v, [1, 6, 11, 12], m(10), m(11));
        mix(&mut v, [2, 7, 8, 13], m(12), m(13));
        mix(&mut v, [3, 4, 9, 14], m(14), m(15));
    }
    for i in 0..8 {
        h[i] = xor(h[i], xor(v[i], v[i + 8]));
    }
}

#[inline(always)]
fn mix<const N: usize>(v: &mut [Lanes<N>; 16], [a, b, c, d]: [usize; 4], x: Lanes<N>, y: Lanes<N>) {
    v[a] = add(add(v[a], v[b]), x);
    v[d] = turn::<32, N>(xor(v[d], v[a]));
    v[c] = add(v[c], v[d]);
    v[b] = turn::<24, N>(xor(v[b], v[c]));
    v[a] = add(add(v[a], v[b]), y);
    v[d] = turn::<16, N>(xor(v[d], v[a]));
    v[c] = add(v[c], v[d]);
    v[b] = turn::<63, N>(xor(v[b], v[c]));
}

#[inline(always)]
fn each<const N: usize>(a: Lanes<N>, b: Lanes<N>, f: impl Fn(u64, u64) -> u64) -> Lanes<N> {
    let mut made = [0; N];
    for i in 0..N {
        made[i] = f(a[i], b[i]);
    }
    made
}

#[inline(always)]
fn add<const N: usize>(a: Lanes<N>, b: Lanes<N>) -> Lanes<N> {
    each(a, b, u64::wrapping_add)
}

#[inline(always)]
fn xor<const N: usize>(a: Lanes<N>, b: Lanes<N>) -> Lanes<N> {
    each(a, b, |a, b| a ^ b)
}

#[inline(always)]
fn turn<const BITS: u32, const N: usize>(a: Lanes<N>) -> Lanes<N> {
    each(a, a, |a, _| a.rotate_right(BITS))
}
