package app

import (
	"context"
	"errors"
	"fmt"

	"tandem/internal/keys"
	"tandem/internal/store"
	"tandem/internal/store/postgres"
	"tandem/internal/store/sqlite"
)

// OpenStore opens the store that cfg.URL names.
func OpenStore(ctx context.Context, cfg store.Config) (store.Store, error) {
	if postgres.Names(cfg.URL) {
		s, err := postgres.Open(ctx, cfg)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	s, err := sqlite.Open(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// OpenHandle opens the database that cfg.URL names, beside the servers that use it.
func OpenHandle(ctx context.Context, cfg store.HandleConfig) (store.Handle, error) {
	if postgres.Names(cfg.URL) {
		return postgres.OpenHandle(ctx, cfg)
	}
	return sqlite.OpenHandle(ctx, cfg)
}

// OpenKeys opens the API keys of the database that cfg.URL names.
func OpenKeys(ctx context.Context, cfg store.HandleConfig) (*keys.Keys, error) {
	if sqlite.Memory(cfg.URL) {
		return nil, errors.New("open API keys: the in-memory database of demo mode has none; name a file with --db")
	}
	db, err := OpenHandle(ctx, cfg)
	var k *keys.Keys
	if err == nil {
		k, err = keys.On(ctx, db, cfg.Log)
	}
	if err != nil {
		name := cfg.URL
		if postgres.Names(name) {
			name = postgres.WithoutPassword(name)
		}
		return nil, fmt.Errorf("open API keys of %s: %w", name, err)
	}
	return k, nil
}
