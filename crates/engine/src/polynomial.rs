//! The polynomial restic cuts files by. Our chunks have fixed lengths; the config must
//! name a valid one all the same, or restic could not open the repository.

use crate::{crypto::fill_random, error::EngineError};

const DEGREE: u32 = 53;
/// One in about 27 candidates is irreducible.
const TRIES: usize = 10_000;

/// A random irreducible polynomial over GF(2) of degree 53, as restic draws it; bit i
/// is the coefficient of x^i.
pub(crate) fn random_irreducible() -> Result<u64, EngineError> {
    for _ in 0..TRIES {
        let mut bytes = [0; 8];
        fill_random(&mut bytes)?;
        let candidate = u64::from_le_bytes(bytes) & ((1 << DEGREE) - 1) | 1 << DEGREE | 1;
        if is_irreducible(candidate) {
            return Ok(candidate);
        }
    }
    Err(EngineError::bug("no irreducible polynomial among random ones"))
}

/// Ben-Or's test for a polynomial of degree 53: it has no factor of degree up to 26.
fn is_irreducible(f: u64) -> bool {
    const X: u64 = 2;
    let mut power = X;
    (1..=DEGREE / 2).all(|_| {
        power = multiply(power, power, f);
        gcd(f, power ^ X) == 1
    })
}

/// Both factors are of a lower degree than `f`, which has degree 53.
fn multiply(mut a: u64, mut b: u64, f: u64) -> u64 {
    let mut product = 0;
    while b != 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        b >>= 1;
        a <<= 1;
        if a >> DEGREE & 1 == 1 {
            a ^= f;
        }
    }
    product
}

fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, remainder(a, b));
    }
    a
}

fn remainder(mut a: u64, b: u64) -> u64 {
    while a != 0 && a.leading_zeros() <= b.leading_zeros() {
        a ^= b << (b.leading_zeros() - a.leading_zeros());
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_polynomial_of_restics_documentation_is_irreducible_and_products_are_not() {
        assert!(is_irreducible(0x25_b468_838d_cb75));
        // x^53 + 1 = (x + 1)(...), and an even polynomial has the factor x.
        assert!(!is_irreducible(1 << 53 | 1));
        assert!(!is_irreducible(0x25_b468_838d_cb74));
    }

    #[test]
    fn drawn_polynomials_have_degree_53_and_a_constant_term() {
        let polynomial = random_irreducible().unwrap();
        assert_eq!((polynomial.ilog2(), polynomial & 1), (53, 1));
    }
}
