//! Anything else, under all settings: scripts made of random bytes.

use proptest::prelude::*;

use crate::Dice;
use crate::script::play;
use crate::support::count;

#[test]
fn x6_random_scripts_are_played_without_a_surprise() {
    for seed in 1..=count(2_000, 500_000) {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let length = dice.roll(1_500);
        let script: Vec<u8> = (0..length).map(|_| (dice.roll(1 << 20) >> 6) as u8).collect();
        let played = std::panic::catch_unwind(|| play(&script));
        assert!(played.is_ok(), "seed {seed}: see above");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_script_that_surprises_is_made_short(script in prop::collection::vec(any::<u8>(), 0..600)) {
        play(&script);
    }
}
