"""Operations on trained weights, measured as the arms were."""
