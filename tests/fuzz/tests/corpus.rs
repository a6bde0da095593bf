//! Every input that once was a finding, or is kept for what it is, again: for ever.

use longshore_fuzz::{corpus, hunt, targets};

#[test]
fn every_kept_input_is_read_or_refused_as_promised() {
    let mut replayed = 0;
    for target in &targets::ALL {
        let inputs = corpus::load(&corpus::folder(), target.name).expect("readable");
        if inputs.is_empty() {
            continue;
        }
        let mut subject = (target.start)();
        for (name, input) in inputs {
            let result = hunt::replay(target, &mut *subject, &input);
            assert_eq!(result, Ok(()), "corpus/{}/{name}", target.name);
            replayed += 1;
        }
    }
    assert!(replayed > 0, "the corpus is not empty");
}

#[test]
fn every_folder_of_the_corpus_is_of_a_target() {
    for entry in std::fs::read_dir(corpus::folder()).expect("there") {
        let name = entry.expect("readable").file_name().into_string().expect("text");
        assert!(targets::ALL.iter().any(|target| target.name == name), "{name}");
    }
}
