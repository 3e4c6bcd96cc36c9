"""Tests whose cases together take most of the unit tier: it has each fourth case of them, the slow tier the others."""

from __future__ import annotations

EVERY = 4
THINNED: dict[str, tuple[str, ...]] = {
    "ctrl/test_attention_rows.py": ("test_no_attention_row_outlives_its_layer",),
    "ctrl/test_cache.py": ("test_slots_of_every_kind_give_the_tokens_of_none",),
    "ctrl/test_classes.py": (
        "test_every_family_comes_back",
        "test_every_variant_comes_back",
    ),
    "ctrl/test_fingerprint.py": ("test_the_same_base_under_another_name_or_dtype_is_welcome",),
    "ctrl/test_interpolation.py": (
        "TestEveryInterpolation::test_equal_branches_pass_through_bit_for_bit",
        "TestEveryInterpolation::test_tokens_do_not_see_each_other",
    ),
    "ctrl/test_layer.py": ("test_a_frozen_layer_that_runs_again_gives_the_same_gradients",),
    "ctrl/test_merge.py": (
        "test_a_gate_whose_weights_are_left_out_is_said",
        "test_merged_is_plain_saves_and_reports_its_gap",
    ),
    "ctrl/test_precision.py": (
        "test_every_family_starts_as_its_base_and_computes_as_half_copies",
        "test_merged_models_are_half_and_exact_at_the_ends",
        "test_reloaded_equals_saved",
    ),
    "ctrl/test_published_config.py": ("test_settings_that_only_training_needs_are_left_out_with_a_warning",),
    "ctrl/test_published_names.py": (
        "test_every_family_comes_back",
        "test_export_writes_these_names",
    ),
    "ctrl/test_quantised.py": (
        "TestCopies::test_it_starts_as_the_base_and_only_copies_train",
        "TestCopies::test_saved_ones_load_onto_the_same_kind",
        "test_merging_and_exporting_are_refused_and_work_over_the_base_in_floats",
    ),
    "ctrl/test_reference.py": ("test_it_is_the_base_and_shares_every_tensor",),
    "ctrl/test_saving.py": (
        "test_from_pretrained_refuses_the_folder_and_says_what_to_do",
        "test_reloaded_equals_saved",
    ),
    "ctrl/test_streams.py": ("TestModels::test_the_divergence_is_the_mean_over_real_tokens",),
    "ctrl/test_swapping.py": ("test_unload_gives_the_base_back",),
    "ctrl/test_watch.py": ("test_a_loop_that_loses_the_divergence_is_warned_once",),
    "ctrl/whole/test_attach.py": ("test_attached_sft_has_the_model_s_own_loss",),
    "ctrl/whole/test_families.py": (
        "TestCopies::test_deepcopy_after_a_pass_is_equal_and_independent",
        "TestCopies::test_save_then_load_into_a_fresh_base",
        "TestDivergence::test_is_the_distance_of_the_two_branches",
        "TestForward::test_each_copy_matters",
        "TestForward::test_records_one_hidden_state_and_attention_per_layer",
        "TestForward::test_the_copies_matter",
        "TestForward::test_the_pretrained_model_is_still_there",
        "TestGeneration::test_cached_equals_uncached_token_for_token",
        "TestGeneration::test_cached_logits_equal_uncached",
        "TestTraining::test_checkpointing_gives_the_same_gradients",
        "TestTraining::test_five_steps_learn",
        "TestTraining::test_frozen_tensors_keep_their_bits",
    ),
    "ctrl/whole/test_no_waste.py": (
        "test_mix_and_divergence_share_what_they_keep",
        "test_what_is_not_in_the_loss_is_not_computed",
    ),
    "ctrl/whole/test_threads.py": (
        "test_replicas_of_data_parallel_keep_their_passes_apart",
        "test_two_threads_keep_their_passes_apart",
    ),
    "ctrl/whole/test_trainer.py": ("test_accumulated_gradients_are_those_of_one_large_batch",),
    "experiments/data/test_graders.py": (
        "TestContract::test_any_reply_has_a_verdict",
        "TestContract::test_right_and_wrong",
    ),
    "experiments/data/test_stored.py": ("test_a_large_table_is_as_a_small_one",),
    "experiments/evaluation/suites/test_instructions.py": ("test_hostile_replies_are_wrong_at_once",),
    "experiments/methods/test_averaging.py": (
        "test_a_fresh_object_with_the_state_goes_on_the_same_way",
        "test_training_goes_on_with_the_same_bits_after_an_evaluation",
    ),
    "experiments/methods/test_losses.py": (
        "test_chunks_and_whole_logits_give_one_kl",
        "test_kl_is_that_of_the_base_at_labelled_tokens",
        "test_micro_batches_add_up_to_a_large_batch",
    ),
    "experiments/methods/test_method.py": ("test_a_method_may_begin_twice_and_holds_nothing_itself",),
    "experiments/methods/test_tuning.py": ("test_a_tuning_starts_as_the_base",),
    "experiments/models/test_checked.py": ("test_a_faulty_folder_is_refused",),
    "experiments/models/test_key_values.py": ("test_logits_are_those_of_a_cache_in_fp32",),
    "experiments/models/test_loss_mask.py": (
        "TestFamilies::test_all_replies_with_their_ends",
        "test_tokens_of_several_letters",
    ),
    "experiments/models/test_reading.py": (
        "TestOtherArchitectures::test_log_probs_are_those_of_each_reply_alone",
        "TestOtherArchitectures::test_replies_are_those_of_each_prompt_alone",
        "TestOtherArchitectures::test_scores_are_those_of_each_option_alone",
    ),
    "experiments/models/test_turns.py": ("test_words_that_a_template_leaves_out_are_found",),
    "experiments/reporting/plots/test_style.py": ("test_a_name_with_dollar_signs_is_no_formula",),
    "experiments/runs/test_checks.py": ("test_prompts_longer_than_the_positions",),
    "experiments/scorecard/test_bootstrap.py": ("test_weights_are_positive_and_give_a_mean_its_variance",),
    "experiments/test_config.py": ("test_a_number_that_means_nothing_is_refused",),
    "experiments/training/test_lm_loss.py": (
        "test_loss_and_gradients_are_those_of_whole_logits",
        "test_the_engine_uses_it_unless_the_method_reads_logits",
        "test_weighted_loss_is_its_restatement_from_chunks_and_from_whole_logits",
    ),
    "experiments/whole/test_deep_nesting.py": ("test_deep_nesting_is_refused_by_name",),
    "test_examples.py": ("test_the_average_keeps_the_contract",),
}
